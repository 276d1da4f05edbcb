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
      choose("Colour", "scale", [
        ["layer", "‖Δ‖ / the layer's median where it is not 0"], ["absolute", "‖Δ‖, absolute"], ["cosine", "cosine of Δ with its mean so far"],
      ]),
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
        tokens: column.tokens.map(({ token, text, magnitudes, cosines }) => ({ token, text, magnitudes, cosines })),
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
