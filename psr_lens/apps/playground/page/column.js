// The playground: prompt and replacements side by side. The files of this folder, in the order of `__init__.py`, are one module, which draws
// it in a notebook (anywidget), on the page of `psr-lens play`, and in a frozen file. What a model wrote is only ever put into text nodes.

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
const shareOf = (value, top) => (top > 0 ? Math.max(-1, Math.min(1, value / top)) : 0);
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
    const method = about.method === about.name ? "" : `${about.method}; `;
    const what = LABELS[about.name] ?? `${method}‖Δ‖ is what its hooks add`;
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
    const read = this.tokens.map((_, index) => this.tokens[word === "read" ? index + 1 : index]);
    if (scale === "cosine") return { each: read.map((token) => token?.cosines), top: 1, what: "cosine" };
    const rows = read.map((token) => token?.magnitudes);
    if (scale === "absolute") return { each: rows, top: Math.max(0, ...rows.filter(Boolean).flat()), what: "‖Δ‖" };
    const medians = this.about.points.map((_, layer) => median(rows.filter(Boolean).map((row) => row[layer]).filter((value) => value > 0)));
    const each = rows.map((row) => row?.map((value, layer) => (medians[layer] > 0 ? value / medians[layer] : 0)));
    return { each, top: 2, what: "‖Δ‖ / median" };
  }

  paint() {
    if (!this.about.points.length) return;
    const { each, top, what } = this.numbers();
    const layer = this.board.view.layer;
    const chosen = layer === "all" ? -1 : this.about.points.findIndex((point) => layerOf(point) === layer);
    const drawn = each.map((row) => (row === undefined ? 0 : layer === "all" ? mean(row) : chosen < 0 ? 0 : row[chosen]));
    const highest = this.board.view.scale === "absolute" ? Math.max(0, ...drawn) : top;
    this.tokens.forEach((token, index) => {
      const share = shareOf(drawn[index], highest);
      token.node.style.setProperty("--psr-push", Math.abs(share).toFixed(3));
      token.node.classList.toggle("psr-against", share < 0);
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
    const [low, high, against] = ["--psr-low", "--psr-high", "--psr-cold"].map((name) => style.getPropertyValue(name).trim().split(" ").map(Number));
    const pen = this.map.getContext("2d");
    each.forEach((row, column) => {
      (row ?? []).forEach((value, layer) => {
        const share = shareOf(value, top);
        const end = share < 0 ? against : high;
        pen.fillStyle = `rgb(${low.map((from, index) => Math.round(from + Math.abs(share) * (end[index] - from))).join(" ")})`;
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
