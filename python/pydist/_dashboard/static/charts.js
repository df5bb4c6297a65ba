// The sparklines of the tiles, and the timeline.
"use strict";

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const COLOURS = 7;
const HISTORY = 120;
const WINDOW = 60;
const LANES_MAX = 40;

/** Black or white, whichever reads better on a colour of six digits. */
function readableOn(colour) {
  const [r, g, b] = [1, 3, 5].map((at) => (parseInt(colour.slice(at, at + 2), 16) / 255) ** 2.2);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.2 ? "#11161b" : "#ffffff";
}

/** A line without axes in a tile; `hover` is told the value under the pointer, or null. */
class Spark {
  constructor(holder, hover) {
    this.holder = holder;
    this.hover = hover;
    this.data = [[], []];
    this.chart = null;
    this.make();
    new ResizeObserver(() => {
      this.chart.setSize({ width: this.holder.clientWidth, height: this.holder.clientHeight });
    }).observe(holder);
  }

  make() {
    if (this.chart) this.chart.destroy();
    const colour = css("--accent");
    this.chart = new uPlot({
      width: this.holder.clientWidth,
      height: this.holder.clientHeight,
      padding: [4, 0, 0, 0],
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 6 } },
      scales: {
        x: { time: false, range: () => { const now = this.data[0].at(-1) ?? HISTORY; return [now - HISTORY, now]; } },
        y: { range: (_, low, high) => [0, Math.max(high ?? 0, 1e-9) * 1.08] },
      },
      axes: [{ show: false }, { show: false }],
      series: [{}, { stroke: colour, width: 1.5, fill: css("--accent-soft"), points: { show: false } }],
      hooks: {
        setCursor: [(chart) => {
          const index = chart.cursor.idx;
          const inside = index != null && chart.cursor.left >= 0;
          this.hover(inside ? { value: this.data[1][index], ago: this.data[0].at(-1) - this.data[0][index] } : null);
        }],
      },
    }, this.data, this.holder);
  }

  set(times, values) {
    this.data = [times, values];
    this.chart.setData(this.data);
  }
}

/** The calls of each process, as bars of time. */
class Timeline {
  constructor(holder, legend, tip) {
    this.holder = holder;
    this.canvas = holder.querySelector("canvas");
    this.legend = legend;
    this.tip = tip;
    this.names = new Map();
    this.boxes = [];
    this.lanes = [];
    this.calls = [];
    this.now = 0;
    new ResizeObserver(() => this.draw()).observe(holder);
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => { this.tip.hidden = true; });
  }

  colour(name) {
    if (!this.names.has(name)) this.names.set(name, this.names.size);
    const index = this.names.get(name);
    return css(index < COLOURS ? `--c${index}` : "--other");
  }

  set(now, processes, calls) {
    this.now = now;
    this.lanes = processes.filter((p) => p.gone_at === null || p.gone_at > now - WINDOW).slice(0, LANES_MAX);
    this.calls = calls;
    this.draw();
    this.showLegend();
  }

  showLegend() {
    const visible = new Set(this.boxes.map((box) => box.name));
    const shown = [...this.names.keys()].slice(0, COLOURS).filter((name) => visible.has(name));
    const wanted = shown.join("\n");
    if (this.legend.dataset.names === wanted) return;
    this.legend.dataset.names = wanted;
    this.legend.replaceChildren(...shown.map((name) => {
      const item = document.createElement("li");
      const swatch = document.createElement("span");
      swatch.className = "swatch";
      swatch.style.background = this.colour(name);
      const label = document.createElement("span");
      label.className = "ellipsis";
      label.textContent = name;
      item.append(swatch, label);
      return item;
    }));
  }

  /** Puts the calls of one process in as few rows as have no overlap. */
  rows(pid) {
    const since = this.now - WINDOW;
    const process = this.lanes.find((p) => p.id === pid);
    const bars = this.calls
      .filter((call) => call.worker === pid && call.began + call.took > since)
      .map((call) => ({ ...call, end: call.began + call.took }));
    for (const call of process.calls) {
      const began = this.now - call.seconds;
      bars.push({ name: call.name, worker: pid, began, end: this.now, took: call.seconds, count: 1, running: true, error: null });
    }
    bars.sort((a, b) => a.began - b.began);
    const ends = [];
    for (const bar of bars) {
      let row = ends.findIndex((end) => end <= bar.began + 0.001);
      if (row < 0) row = ends.length < 4 ? ends.length : ends.indexOf(Math.min(...ends));
      ends[row] = bar.end;
      bar.row = row;
    }
    return { bars, rows: Math.max(1, ends.length) };
  }

  draw() {
    const width = this.holder.clientWidth - 28;
    if (width < 50) return;
    const lane = 26, axis = 20, left = 44;
    const height = Math.max(3, this.lanes.length) * lane + axis;
    const ratio = window.devicePixelRatio || 1;
    if (this.canvas.width !== Math.round(width * ratio) || this.canvas.height !== Math.round(height * ratio)) {
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round(height * ratio);
      this.canvas.style.height = `${height}px`;
    }
    const context = this.canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = `12px ${getComputedStyle(document.body).fontFamily}`;
    context.textBaseline = "middle";
    const x = (time) => left + (width - left) * (1 - (this.now - time) / WINDOW);
    this.drawGrid(context, width, height, lane, axis, left);
    this.boxes = [];
    this.lanes.forEach((process, index) => {
      const top = index * lane;
      context.fillStyle = css("--muted");
      context.textAlign = "right";
      context.fillText(process.id === 1 ? "1 *" : String(process.id), left - 10, top + lane / 2);
      const { bars, rows } = this.rows(process.id);
      const size = (lane - 6) / rows;
      for (const bar of bars) {
        const from = Math.max(x(bar.began), left);
        const box = { ...bar, x: from, y: top + 3 + bar.row * size, w: Math.max(x(bar.end) - from, 1.5), h: Math.max(size - (rows > 1 ? 1 : 0), 2) };
        this.drawBar(context, box);
        this.boxes.push(box);
      }
      if (process.gone_at !== null) this.drawEnd(context, x(process.gone_at), top, lane, width, process);
    });
  }

  drawGrid(context, width, height, lane, axis, left) {
    context.lineWidth = 1;
    context.strokeStyle = css("--line");
    context.fillStyle = css("--muted");
    context.textAlign = "center";
    const step = width < 520 ? 20 : 10;
    for (let ago = 0; ago <= WINDOW; ago += step) {
      const at = Math.round(left + (width - left) * (1 - ago / WINDOW)) - 0.5;
      context.beginPath();
      context.moveTo(at, 0);
      context.lineTo(at, height - axis + 3);
      context.stroke();
      context.textAlign = ago === 0 ? "right" : "center";
      context.fillText(ago === 0 ? "now" : `−${ago} s`, at, height - axis / 2 + 2);
    }
    for (let index = 0; index <= Math.max(3, this.lanes.length); index++) {
      context.beginPath();
      context.moveTo(left, index * lane + 0.5);
      context.lineTo(width, index * lane + 0.5);
      context.stroke();
    }
  }

  drawBar(context, box) {
    context.fillStyle = this.colour(box.name);
    context.globalAlpha = box.running ? 0.65 : 1;
    context.fillRect(box.x, box.y, box.w, box.h);
    context.globalAlpha = 1;
    if (box.error !== null) {
      // A mark of its own, as colour alone would not tell.
      const right = box.x + box.w, middle = box.y + box.h / 2;
      context.strokeStyle = css("--surface");
      context.fillStyle = css("--bad");
      context.lineWidth = 1;
      context.beginPath();
      context.moveTo(right, middle - 6); context.lineTo(right + 6, middle); context.lineTo(right, middle + 6); context.lineTo(right - 6, middle);
      context.closePath(); context.fill(); context.stroke();
    } else if (box.w > 46 && box.h > 14) {
      context.save();
      context.beginPath();
      context.rect(box.x, box.y, box.w - 3, box.h);
      context.clip();
      context.fillStyle = readableOn(this.colour(box.name));
      context.textAlign = "left";
      context.fillText(box.name, box.x + 6, box.y + box.h / 2 + 0.5);
      context.restore();
    }
  }

  /** A worker that has gone: from then on its lane is struck out. */
  drawEnd(context, at, top, lane, width, process) {
    context.strokeStyle = css("--bad");
    context.lineWidth = 2;
    context.beginPath();
    context.moveTo(at, top + 3); context.lineTo(at, top + lane - 3);
    context.moveTo(at, top + lane / 2); context.lineTo(width, top + lane / 2);
    context.stroke();
    this.boxes.push({ x: at - 2, y: top, w: width - at, h: lane, name: `worker ${process.id} is gone`, gone: process.reason });
  }

  point(event) {
    const area = this.canvas.getBoundingClientRect();
    const x = event.clientX - area.left, y = event.clientY - area.top;
    const near = (box) => x >= box.x - 3 && x <= box.x + box.w + 3 && y >= box.y - 1 && y <= box.y + box.h + 1;
    const box = this.boxes.findLast(near);
    this.tip.hidden = !box;
    if (!box) return;
    const lines = box.gone ? [box.name, box.gone] : [box.name, `worker ${box.worker} · ${box.running ? "runs for" : "took"} ${duration(box.took)}`];
    if (box.count > 1) lines.push(`${box.count} calls one after the other`);
    if (!box.running && !box.gone) lines.push(`began ${clock(box.began)}`);
    if (box.error) lines.push(box.error);
    this.tip.textContent = lines.join("\n");
    const { width, height } = this.tip.getBoundingClientRect();
    this.tip.style.left = `${Math.min(event.clientX + 14, innerWidth - width - 8)}px`;
    this.tip.style.top = `${event.clientY + 18 + height > innerHeight ? event.clientY - height - 12 : event.clientY + 18}px`;
  }
}
