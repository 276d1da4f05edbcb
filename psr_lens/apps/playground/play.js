// The playground: prompt and replacements side by side. The same module draws it in a notebook (anywidget), on the page of
// `psr-lens play`, and in a frozen file. What a model wrote is only ever put into text nodes.

const LABELS = {
  none: "the model without the instruction and without steering",
  prompt: "with the instruction; ‖Δ‖ is the difference from a second pass over the same tokens without it",
};

function make(kind, properties = {}, ...children) {
  const { data, ...others } = properties;
  const node = Object.assign(document.createElement(kind), others);
  for (const [name, value] of Object.entries(data ?? {})) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const median = (values) => {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted.length ? sorted[sorted.length >> 1] : 0;
};
const mean = (values) => (values.length ? values.reduce((sum, each) => sum + each, 0) / values.length : 0);
const figure = (value) => (value === 0 ? "0" : Math.abs(value) >= 100 ? value.toFixed(0) : value.toPrecision(3));
const signed = (value) => {
  const short = value.toFixed(2);
  return (Math.abs(Number(short) - value) < 1e-9 ? short : String(Number(value.toPrecision(6)))).replace("-", "−");
};
const layerOf = (point) => {
  const found = /^blocks\.(\d+)\.(?:hook_|attn\.hook_)(.*)$/.exec(point);
  return found ? (found[2] === "resid_post" ? `layer ${found[1]}` : `layer ${found[1]} ${found[2]}`) : point;
};

// One column: its heading, its strength, the answer token by token, and the map of layers and tokens.
class Column {
  constructor(board, about, alpha) {
    this.board = board;
    this.about = about;
    this.tokens = [];
    this.asked = null; // question, instruction, strength and sampling of what is shown
    this.run = null;
    this.written = 0; // characters of the answer that are shown
    this.done = true;
    const id = `psr-${Math.random().toString(36).slice(2)}`;
    this.node = make("section", { className: "psr-column", data: { "data-column": about.name, "aria-labelledby": id } });
    const heading = make("h3", { id, textContent: about.name });
    const what = LABELS[about.name] ?? `${about.method}; ‖Δ‖ is what its hooks add`;
    this.node.append(heading, make("p", { className: "psr-what", textContent: what }));
    if (alpha !== undefined) {
      this.slider = make("input", {
        type: "range", min: board.hello.alpha_range[0], max: board.hello.alpha_range[1], step: 0.05, disabled: !board.transport.run,
        data: { "aria-label": `strength α of ${about.name}` },
      });
      this.strength = make("output");
      this.alpha = alpha;
      this.node.append(make("label", { className: "psr-strength" }, "α ", this.slider, this.strength));
      this.slider.addEventListener("input", () => board.turned(this));
      this.slider.addEventListener("change", () => board.settled(this));
    } else this.node.append(make("span"));
    this.answer = make("div", { className: "psr-answer", data: { role: "group", "aria-label": `answer of ${about.name}, token by token` } });
    this.answer.tabIndex = -1;
    this.heard = make("p", { className: "psr-heard" });
    this.map = make("canvas", { className: "psr-map", data: { role: "img", "aria-label": `‖Δ‖ of ${about.name}: layers by tokens` } });
    this.map.hidden = true;
    this.count = make("p", { className: "psr-count" });
    this.node.append(this.answer, this.map, this.count, this.heard);
    this.answer.addEventListener("click", (event) => this.choose(event.target));
    this.answer.addEventListener("focusin", (event) => this.rove(event.target));
    this.answer.addEventListener("keydown", (event) => this.step(event));
    this.map.addEventListener("click", (event) => {
      const at = Math.floor((event.offsetX / this.map.clientWidth) * this.tokens.length);
      if (this.tokens[at]) this.choose(this.tokens[at].node);
    });
  }

  get alpha() {
    return this.strong;
  }

  // The slider stands at the nearest of its steps; what is said and sent is the strength itself.
  set alpha(value) {
    this.strong = value;
    this.slider.value = value;
    this.slider.setAttribute("aria-valuetext", signed(value));
    this.strength.textContent = signed(value);
  }

  clear(run) {
    this.tokens = [];
    this.asked = null;
    this.run = run;
    this.written = 0;
    this.done = false;
    if (this.answer.contains(this.answer.getRootNode().activeElement)) this.answer.focus();
    this.answer.replaceChildren();
    this.heard.textContent = "";
    this.map.hidden = true;
    this.count.textContent = "";
    this.node.classList.add("psr-busy");
  }

  add(message) {
    // A tokenizer that removes spaces before punctuation may shorten what it wrote before.
    let left = message.answer.length - message.text.length;
    if (left !== this.written) {
      for (const token of this.tokens) {
        token.node.textContent = token.node.textContent.slice(0, Math.max(0, left));
        left -= token.node.textContent.length;
      }
    }
    this.written = message.answer.length;
    const node = make("span", {
      className: "psr-token", textContent: message.text, tabIndex: this.tokens.length ? -1 : 0,
      data: { role: "button", "aria-label": `token ${message.index + 1}: ${message.token}` },
    });
    if (!message.text) node.classList.add("psr-silent");
    this.answer.append(node);
    this.tokens.push({ ...message, node });
    const layers = this.about.points.map(layerOf);
    const span = layers.length > 1 ? ` × ${layers[0]} (below) to ${layers.at(-1)}` : layers.length ? ` at ${layers[0]}` : "";
    this.count.textContent = `${this.tokens.length} token${this.tokens.length === 1 ? "" : "s"}${span}`;
    if (message.last) this.finish();
  }

  finish() {
    this.done = true;
    this.node.classList.remove("psr-busy");
    // Read as one text; the tokens above are buttons.
    this.heard.textContent = this.tokens.length ? `Answer of ${this.about.name}: ${this.tokens.at(-1).answer}` : "";
  }

  // The numbers that colour each token, and those of the map, layer by layer; undefined where a token was not read yet. A layer's median is
  // that of the tokens which are pushed there at all: most replacements are silent on most tokens.
  numbers() {
    const { scale, word } = this.board.view;
    const rows = this.tokens.map((_, index) => this.tokens[word === "read" ? index + 1 : index]?.magnitudes);
    const medians = this.about.points.map((_, layer) => median(rows.filter(Boolean).map((row) => row[layer]).filter((value) => value > 0)));
    const each = rows.map((row) => row?.map((value, layer) => (scale === "absolute" ? value : medians[layer] > 0 ? value / medians[layer] : 0)));
    const top = scale === "absolute" ? Math.max(0, ...each.filter(Boolean).flat()) : 2;
    return { each, top };
  }

  paint() {
    if (!this.about.points.length) return;
    const { each, top } = this.numbers();
    const layer = this.board.view.layer;
    const chosen = layer === "all" ? -1 : this.about.points.findIndex((point) => layerOf(point) === layer);
    const drawn = each.map((row) => (row === undefined ? 0 : layer === "all" ? mean(row) : chosen < 0 ? 0 : row[chosen]));
    const highest = this.board.view.scale === "absolute" ? Math.max(0, ...drawn) : top;
    const what = this.board.view.scale === "absolute" ? "‖Δ‖" : "‖Δ‖ / median";
    this.tokens.forEach((token, index) => {
      const share = highest > 0 ? Math.min(1, drawn[index] / highest) : 0;
      token.node.style.setProperty("--psr-push", share.toFixed(3));
      token.node.title = each[index] === undefined ? token.token : `${token.token}  ${what} ${figure(drawn[index])}`;
    });
    this.drawMap(each, top);
  }

  drawMap(each, top) {
    const layers = this.about.points.length;
    this.map.hidden = !this.tokens.length;
    if (this.map.hidden) return;
    const tall = Math.max(3, Math.min(14, Math.round(84 / layers)));
    this.map.width = this.tokens.length;
    this.map.height = layers;
    this.map.style.height = `${tall * layers}px`;
    const style = getComputedStyle(this.node);
    const [low, high] = ["--psr-low", "--psr-high"].map((name) => style.getPropertyValue(name).trim().split(" ").map(Number));
    const pen = this.map.getContext("2d");
    each.forEach((row, column) => {
      (row ?? []).forEach((value, layer) => {
        const share = top > 0 ? Math.min(1, value / top) : 0;
        pen.fillStyle = `rgb(${low.map((from, index) => Math.round(from + share * (high[index] - from))).join(" ")})`;
        pen.fillRect(column, layers - 1 - layer, 1, 1);
      });
    });
  }

  index(node) {
    return this.tokens.findIndex((token) => token.node === node);
  }

  choose(node) {
    const index = this.index(node);
    if (index >= 0) this.board.inspect(this, index);
  }

  rove(node) {
    if (this.index(node) < 0) return;
    for (const token of this.tokens) token.node.tabIndex = token.node === node ? 0 : -1;
  }

  step(event) {
    const at = this.index(event.target);
    if (at < 0 && event.target !== this.answer) return;
    const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: this.tokens.length - 1 }[event.key];
    if (next !== undefined && this.tokens.length) {
      event.preventDefault();
      this.tokens[Math.max(0, Math.min(this.tokens.length - 1, next))].node.focus();
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.choose(event.target);
    }
  }
}

// Everything: what is asked, how it is shown, and the columns.
class Board {
  constructor(root, hello, transport) {
    this.root = root;
    this.hello = hello;
    this.transport = transport;
    this.run = null;
    this.python = "";
    this.view = { scale: "layer", word: "read", layer: "all" };
    this.columns = new Map();
    root.classList.add("psr-play");
    root.replaceChildren(
      make("header", {}, make("h2", { textContent: "Prompt and replacement, side by side" }), make("p", { className: "psr-model", textContent: hello.model })),
      this.asking(),
      this.looking(),
    );
    this.grid = make("div", { className: "psr-columns" });
    for (const about of hello.columns) {
      const column = new Column(this, about, hello.alphas[about.name]);
      this.columns.set(about.name, column);
      this.grid.append(column.node);
    }
    this.detail = make("section", { className: "psr-detail", hidden: true, data: { "aria-live": "polite", "aria-label": "the token" } });
    root.append(this.grid, this.detail);
    this.busy(false);
    const dark = matchMedia("(prefers-color-scheme: dark)");
    this.repaint = () => this.paint();
    dark.addEventListener("change", this.repaint);
    const themes = new MutationObserver(this.repaint); // JupyterLab's
    themes.observe(document.body, { attributeFilter: ["data-jp-theme-light"] });
    this.close = () => {
      themes.disconnect();
      dark.removeEventListener("change", this.repaint);
      transport.close?.();
    };
  }

  field(label, input) {
    return make("label", { className: "psr-field" }, make("span", { textContent: label }), input);
  }

  asking() {
    const { hello, transport } = this;
    this.question = make("textarea", { rows: 2, value: hello.question, name: "question" });
    this.instruction = make("textarea", { rows: 2, value: hello.instruction, name: "instruction" });
    this.seed = make("input", { type: "text", inputMode: "numeric", pattern: "[0-9]{1,40}", required: true, value: hello.seed, name: "seed", title: "a whole number" });
    this.temperature = make("input", { type: "number", min: 0, max: 5, step: "any", required: true, value: hello.temperature, name: "temperature" });
    this.tokens = make("input", { type: "number", min: 1, max: 2048, step: 1, required: true, value: hello.max_new_tokens, name: "max_new_tokens" });
    this.link = make("input", { type: "checkbox", name: "link" });
    this.go = make("button", { type: "submit", className: "psr-run", textContent: "Run" });
    this.halt = make("button", { type: "button", textContent: "Stop" });
    this.status = make("p", { className: "psr-status", data: { role: "status" } });
    const form = this.form = make("form", { className: "psr-asking" });
    form.append(this.field("Question", this.question), this.field("Instruction (in the column prompt)", this.instruction));
    if (hello.questions.length > 1) {
      const list = make("select", { name: "questions" }, make("option", { value: "", textContent: "choose a question …" }));
      for (const text of hello.questions) list.append(make("option", { value: text, textContent: text }));
      list.addEventListener("change", () => { if (list.value) this.question.value = list.value; });
      form.append(this.field("Questions", list));
    }
    const numbers = make("div", { className: "psr-row" });
    numbers.append(
      this.field("Seed", this.seed), this.field("Temperature", this.temperature), this.field("Tokens at most", this.tokens),
      make("label", { className: "psr-check" }, this.link, " one α for all"),
    );
    const buttons = make("div", { className: "psr-row psr-buttons" }, this.go, this.halt);
    for (const [name, text, act] of [
      ["copy", "Copy as Python", () => this.copy()], ["json", "Save JSON", () => this.saveJson()], ["freeze", "Save as HTML", () => this.freeze()],
    ]) {
      const button = make("button", { type: "button", name, textContent: text });
      button.addEventListener("click", act);
      if (transport.run || name === "json" || name === "copy") buttons.append(button);
    }
    form.append(numbers, buttons, this.status);
    form.addEventListener("submit", (event) => { event.preventDefault(); this.start([...this.columns.keys()]); });
    form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); form.requestSubmit(); }
    });
    this.halt.addEventListener("click", () => this.stop());
    if (!transport.run) {
      for (const each of form.querySelectorAll("input, select, .psr-run")) each.disabled = true;
      this.question.readOnly = this.instruction.readOnly = true;
    }
    return form;
  }

  looking() {
    const choose = (label, name, options) => {
      const list = make("select", { name });
      for (const [value, text] of options) list.append(make("option", { value, textContent: text }));
      list.value = this.view[name];
      list.addEventListener("change", () => { this.view[name] = list.value; this.paint(); });
      return this.field(label, list);
    };
    const layers = [...new Set(this.hello.columns.flatMap((column) => column.points.map(layerOf)))];
    return make("div", { className: "psr-row psr-looking", data: { role: "group", "aria-label": "colours" } },
      choose("Colour", "scale", [["layer", "‖Δ‖ / the layer's median where it is not 0"], ["absolute", "‖Δ‖, absolute"]]),
      choose("Word", "word", [["read", "that is read"], ["predicted", "that is predicted"]]),
      choose("Layer", "layer", [["all", "mean of all"], ...layers.map((each) => [each, each])]));
  }

  say(text, failed = false) {
    this.status.textContent = text;
    this.status.classList.toggle("psr-failed", failed);
  }

  busy(going) {
    this.root.classList.toggle("psr-going", going);
    if (!going && this.halt.getRootNode().activeElement === this.halt) this.go.focus();
    this.halt.disabled = !going;
  }

  turned(column) {
    column.alpha = Number(column.slider.value);
    if (this.link.checked) for (const each of this.columns.values()) if (each.slider) each.alpha = column.alpha;
  }

  settled(column) {
    const started = [...this.columns.values()].some((each) => each.tokens.length);
    if (!started || !this.transport.run) return;
    const moved = [...this.columns.values()].filter((each) => (this.link.checked ? each.slider : each === column) || !each.done);
    this.start(moved.map((each) => each.about.name));
  }

  start(columns) {
    if (!this.form.reportValidity()) return;
    const settings = {
      question: this.question.value, instruction: this.instruction.value,
      seed: this.seed.value, temperature: Number(this.temperature.value), max_new_tokens: Number(this.tokens.value),
    };
    const asked = JSON.stringify(settings); // answers that are shown together differ in their strengths alone
    if (asked !== this.asked) columns = [...this.columns.keys()];
    this.asked = asked;
    const alphas = {};
    for (const column of this.columns.values()) if (column.slider) alphas[column.about.name] = column.alpha;
    this.run = `${Date.now()}-${Math.random()}`;
    for (const name of columns) this.columns.get(name).clear(this.run);
    this.detail.hidden = true;
    this.busy(true);
    this.say("Running …");
    this.began = performance.now();
    const going = this.transport.run({ run: this.run, columns, alphas, ...settings }, (message) => this.hear(message));
    Promise.resolve(going).catch((error) => {
      this.stop();
      this.hear({ type: "error", message: `The page cannot draw this: ${error.message}` });
      throw error; // to the console
    });
  }

  hear(message) {
    if (message.run !== undefined && message.run !== this.run) return;
    if (message.type === "start") {
      this.python = message.python;
      for (const [name, asked] of Object.entries(message.asked)) this.columns.get(name).asked = asked;
    } else if (message.type === "token") {
      if (this.began) this.root.dataset.firstToken = Math.round(performance.now() - this.began);
      this.began = 0;
      this.columns.get(message.column).add(message);
      this.soon();
    } else if (message.type === "end" || message.type === "error") {
      for (const column of this.columns.values()) column.finish();
      this.busy(false);
      this.paint();
      if (message.type === "error") this.say(message.message, true);
      else this.say(message.stopped ? "Stopped." : "Done.");
    }
  }

  soon() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.paint(); });
  }

  paint() {
    for (const column of this.columns.values()) column.paint();
  }

  stop() {
    this.transport.stop();
  }

  inspect(column, index) {
    const token = column.tokens[index];
    for (const each of this.root.querySelectorAll(".psr-chosen")) each.classList.remove("psr-chosen");
    token.node.classList.add("psr-chosen");
    const alpha = column.slider ? `, α = ${signed(column.asked.alpha)}` : "";
    const heading = make("h3", {}, `Token ${index + 1} of `, make("b", { textContent: column.about.name }), `${alpha}: `, make("code", { textContent: token.token }));
    this.detail.replaceChildren(heading);
    this.detail.hidden = false;
    const parts = make("div", { className: "psr-parts" });
    this.detail.append(parts);
    if (column.about.points.length) parts.append(this.profile(column, index));
    const next = make("div", { className: "psr-next" }, make("h4", { textContent: "Likeliest in place of this token" }), make("p", { textContent: "…" }));
    parts.append(next);
    const wanted = `${column.run} ${column.about.name} ${index}`;
    this.wanted = wanted;
    this.transport.inspect({ run: column.run, column: column.about.name, index }).then((found) => {
      if (this.wanted !== wanted) return;
      if (found.type === "error") next.lastChild.textContent = found.message;
      else next.replaceChildren(this.list(`Likeliest in place of this token: ${column.about.name}`, found.here), this.list("… and without instruction and steering, behind the same tokens", found.base));
    });
  }

  profile(column, index) {
    const { word } = this.view;
    const values = column.tokens[word === "read" ? index + 1 : index]?.magnitudes;
    const box = make("div", { className: "psr-profile" }, make("h4", { textContent: `‖Δ‖ by layer where it is ${word}` }));
    if (!values) {
      box.append(make("p", { textContent: "The last token of an answer is not read." }));
      return box;
    }
    const top = Math.max(...values, 1e-30);
    const list = make("ol", { className: "psr-bars" });
    values.forEach((value, layer) => {
      const bar = make("span", { className: "psr-bar" });
      bar.style.setProperty("--psr-length", value / top);
      list.append(make("li", {}, make("span", { textContent: layerOf(column.about.points[layer]) }), bar, make("span", { textContent: figure(value) })));
    });
    box.append(list);
    return box;
  }

  list(title, tokens) {
    const list = make("ol", { className: "psr-bars" });
    for (const [text, share] of tokens) {
      const bar = make("span", { className: "psr-bar" });
      bar.style.setProperty("--psr-length", share);
      list.append(make("li", {}, make("code", { textContent: text }), bar, make("span", { textContent: `${(100 * share).toFixed(1)} %` })));
    }
    return make("div", {}, make("h4", { textContent: title }), list);
  }

  async copy() {
    if (!this.python) return this.say("Run it first.");
    try {
      await navigator.clipboard.writeText(this.python);
      this.say("Copied.");
    } catch {
      const area = make("textarea", { className: "psr-python", value: this.python, readOnly: true, rows: 12 });
      this.detail.replaceChildren(make("h3", { textContent: "Python" }), area);
      this.detail.hidden = false;
      area.select();
    }
  }

  saveJson() {
    const columns = {};
    for (const [name, column] of this.columns) {
      const { alpha, seed, temperature, max_new_tokens } = column.asked ?? {};
      columns[name] = {
        alpha: alpha ?? null, seed, temperature, max_new_tokens, hook_points: column.about.points, answer: column.tokens.at(-1)?.answer ?? "",
        tokens: column.tokens.map(({ token, text, magnitudes }) => ({ token, text, magnitudes })),
      };
    }
    const asked = [...this.columns.values()].find((column) => column.asked)?.asked;
    if (!asked) return this.say("Run it first.");
    const found = { model: this.hello.model, question: asked.question, instruction: asked.instruction, python: this.python, columns };
    this.download("playground.json", "application/json", JSON.stringify(found, null, 1));
  }

  async freeze() {
    const found = await this.transport.freeze();
    if (found.type === "error") this.say(found.message, true);
    else this.download("playground.html", "text/html", found.html);
  }

  download(name, type, text) {
    const link = make("a", { download: name, href: URL.createObjectURL(new Blob([text], { type })) });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    this.say(`Saved as ${name}.`);
  }
}

// --- where it runs ---------------------------------------------------------------------------------------------------------

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
  return {
    hello: () => ask("/hello"),
    stop: () => ask("/stop"),
    inspect: (asked) => ask("/inspect", asked),
    freeze: () => ask("/freeze"),
    async run(asked, hear) {
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
