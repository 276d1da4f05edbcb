// Where it runs, and where its answers come from: the server of `psr-lens play`, a notebook's kernel, or a frozen file.

const GONE = "The server does not answer: has `psr-lens play` ended?";

function ofServer() {
  const key = new URLSearchParams(location.hash.slice(1)).get("key") ?? "";
  const post = (path, body) => fetch(path, {
    method: "POST", headers: { "Content-Type": "application/json", Authorization: `Bearer ${key}` }, body: JSON.stringify(body),
  });
  const ask = async (path, body = {}) => {
    try {
      return await (await post(path, body)).json();
    } catch {
      return { type: "error", message: GONE };
    }
  };
  const send = async (asked, hear) => {
    const fail = (message) => hear({ type: "error", run: asked.run, message });
    let reader;
    try {
      const answer = await post("/run", asked);
      if (!answer.ok) return fail((await answer.json()).message);
      reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    } catch {
      return fail(GONE);
    }
    let rest = "", last = "";
    for (;;) {
      const part = await reader.read().catch(() => ({ done: true }));
      if (part.done) break;
      const lines = (rest + part.value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        const message = JSON.parse(line);
        last = message.type;
        hear(message);
      }
    }
    if (last !== "end" && last !== "error") fail(GONE);
  };
  // Requests may overtake each other, and a run ends the one before. So each waits for its turn, which comes when the run before it has begun;
  // of those that wait, only the last is sent.
  let turn = Promise.resolve(), latest = null;
  const inTurn = (asked, hear, begun) => {
    if (latest === asked) return send(asked, (message) => { begun(); hear(message); });
    return hear({ type: "end", run: asked.run, stopped: true });
  };
  return {
    hello: () => ask("/hello"),
    inspect: (asked) => ask("/inspect", asked),
    freeze: () => ask("/freeze"),
    run(asked, hear) {
      latest = asked;
      const before = turn;
      let ended;
      turn = new Promise((begun) => { ended = before.then(() => inTurn(asked, hear, begun)).finally(begun); });
      return ended;
    },
    stop() {
      latest = null;
      turn = turn.then(() => ask("/stop"));
    },
  };
}

function ofNotebook(model) {
  const waiting = new Map();
  let hear = () => {};
  let number = 0;
  const listen = (message) => {
    if (message.reply !== undefined) {
      waiting.get(message.reply)?.(message.content);
      waiting.delete(message.reply);
    } else hear(message);
  };
  model.on("msg:custom", listen);
  const ask = (type, asked = {}) => new Promise((done) => {
    number += 1;
    const reply = `${number}-${Math.random()}`;
    waiting.set(reply, done);
    model.send({ type, reply, asked });
  });
  return {
    stop: () => model.send({ type: "stop" }),
    inspect: (asked) => ask("inspect", asked),
    freeze: () => ask("freeze"),
    run(asked, listener) {
      hear = listener;
      model.send({ type: "run", asked });
    },
    close: () => model.off("msg:custom", listen),
  };
}

function ofFrozen({ messages }) {
  const found = new Map();
  for (const each of messages) if (each.type === "inspected") found.set(`${each.column} ${each.index}`, each);
  const nothing = { type: "error", message: "This file holds the tokens that were looked at when it was saved." };
  return { stop() {}, inspect: async ({ column, index }) => found.get(`${column} ${index}`) ?? nothing };
}

function render({ model, el }) {
  return new Board(el, model.get("hello"), ofNotebook(model)).close;
}

async function begin(root) {
  if (root.dataset.psrPlay === "frozen") {
    const shown = JSON.parse(document.getElementById("psr-play-data").textContent);
    const board = new Board(root, shown.hello, ofFrozen(shown));
    board.run = "frozen";
    for (const message of shown.messages) board.hear({ ...message, run: "frozen" });
    return;
  }
  const transport = ofServer();
  const hello = await transport.hello();
  if (hello.type === "error") root.append(make("p", { className: "psr-failed", textContent: hello.message, data: { role: "alert" } }));
  else new Board(root, hello, transport);
}

for (const root of document.querySelectorAll("[data-psr-play]")) begin(root);

export default { render };
