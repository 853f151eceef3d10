// Keeps pages up to date: what the server renders is rendered again when something happens, and put in place without losing
// where one is. Without this script everything works, after a reload.
"use strict";
(() => {
  const main = document.getElementById("main");
  const live = document.getElementById("live");
  const MOST_LINES = 5000;

  // Moments in words.
  const words = new Intl.RelativeTimeFormat("en", { numeric: "auto", style: "narrow" });
  const units = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
  function tellTimes(within) {
    for (const time of within.querySelectorAll("time[datetime]:not(.log time)")) {
      const moment = new Date(time.dateTime);
      const away = (moment - Date.now()) / 1000;
      const [unit, size] = units.find(([, size]) => Math.abs(away) >= size) || units[3];
      time.title = moment.toLocaleString();
      const text = Math.abs(away) < 1 ? "now" : words.format(Math.trunc(away / size), unit);
      if (time.textContent !== text) time.textContent = text;
    }
  }

  // Whether somebody is at a form, or has changed something in it.
  function isFilledIn(form) {
    if (form.contains(document.activeElement) && !document.activeElement.matches("button")) return true;
    return [...form.elements].some((one) => one.type !== "hidden" && (one.type === "checkbox" ? one.checked !== one.defaultChecked
      : one.options ? [...one.options].some((option) => option.selected !== option.defaultSelected) && one.selectedIndex > 0
      : "defaultValue" in one && one.value !== one.defaultValue));
  }

  // An answer whole; none when the server is not reached or the page is left meanwhile, which is no fault of the page's.
  async function fetched(address) {
    try {
      const answer = await fetch(address, { headers: { accept: "text/html" } });
      return { redirected: answer.redirected, url: answer.url, ok: answer.ok, text: await answer.text() };
    } catch {
      return null;
    }
  }

  // The page, made again.
  let busy = false, again = false;
  async function refresh() {
    if (busy) { again = true; return; }
    busy = true;
    try {
      const answer = await fetched(location.href);
      if (answer?.redirected && new URL(answer.url).pathname === "/sign-in") { location.reload(); return; }
      if (!answer?.ok) { setTimeout(soon, 3000); return; }
      const fresh = new DOMParser().parseFromString(answer.text, "text/html").getElementById("main");
      // What was done is told long enough to be read.
      if (performance.now() > 10000) for (const notice of fresh.querySelectorAll(":scope > .notice[role=status]")) notice.remove();
      tellTimes(fresh);
      copiers(fresh);
      const open = new Set([...main.querySelectorAll("details[open][id]")].map((one) => one.id));
      for (const one of fresh.querySelectorAll("details[id]")) if (open.has(one.id)) one.open = true;
      // Its children: an element given as it is would be put into the old one.
      Idiomorph.morph(main, fresh.childNodes, {
        morphStyle: "innerHTML",
        ignoreActiveValue: true,
        callbacks: {
          // What somebody fills in, and what grows by itself, is left alone.
          beforeNodeMorphed: (old) => !(old instanceof Element && (old.hasAttribute("data-keep") || (old.matches("form") && isFilledIn(old)))),
        },
      });
    } catch (error) {
      console.debug(error);
    } finally {
      busy = false;
      if (again) { again = false; soon(); }
    }
  }
  // At most once a second, however much happens.
  let waiting = 0, last = -1000;
  function soon() {
    if (waiting) return;
    const pause = Math.max(150, last + 1000 - performance.now());
    waiting = setTimeout(() => { waiting = 0; last = performance.now(); refresh(); }, pause);
  }

  function say(text) {
    live.hidden = !text;
    live.textContent = text;
  }

  // A stream that comes back by itself, where it was; closed while nobody looks, as a browser has few connections for each host.
  // `heard` gets each message, `opened` is called when what happened before may have been missed.
  function stream(path, { heard, opened = () => {}, finished = () => false }) {
    let source = null, id = "", timer = 0;
    const url = () => {
      if (!id) return path;
      const [base, query] = path.split("?");
      const asked = new URLSearchParams(query);
      asked.delete("lines");
      asked.set(base.includes("/builds/") ? "from" : "after", id);
      return `${base}?${asked}`;
    };
    const close = () => { clearTimeout(timer); source?.close(); source = null; };
    const retry = (pause) => { close(); timer = setTimeout(open, pause); };
    const take = (message, missed) => { id = message.lastEventId || id; heard(message, missed); };
    function open() {
      close();
      if (document.hidden) return;
      source = new EventSource(url());
      source.onopen = () => { say(""); opened(); };
      source.onmessage = (message) => take(message, false);
      source.addEventListener("missed", (message) => take(message, true));
      source.addEventListener("end", (message) => {
        if (finished(message)) { close(); done = true; return; }
        say("Not connected; trying again…");
        retry(2000);
      });
      source.onerror = () => {
        say("Not connected; trying again…");
        // A refusal does not come back by itself; whoever is signed out is sent to where one signs in by `refresh`.
        if (source?.readyState === EventSource.CLOSED) { soon(); retry(5000); }
      };
    }
    let done = false;
    open();
    document.addEventListener("visibilitychange", () => { if (done) return; if (document.hidden) close(); else open(); });
    addEventListener("pagehide", close);
    addEventListener("pageshow", (event) => { if (event.persisted && !done) open(); });
  }

  if (document.body.dataset.live) {
    // Whatever happened before it was open is in the page that is made then.
    stream(document.body.dataset.live, { heard: soon, opened: soon });
  }

  // Text is only ever put in as text; colours of terminals are left out, other control characters show.
  const CODES = /\u001b\[[0-9;:?]*[ -\/]*[@-~]|\u001b\][^\u0007\u001b]*(?:\u0007|\u001b\\)/g;
  const clean = (text) => text.replace(CODES, "").replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g, "\ufffd");

  const log = document.getElementById("log");
  if (log) {
    log.scrollTop = log.scrollHeight;
    if (log.dataset.follow) follow(log);
  }

  function follow(log) {
    const add = (row) => {
      const below = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      log.append(row);
      while (log.childElementCount > MOST_LINES) log.firstElementChild.remove();
      if (below) log.scrollTop = log.scrollHeight;
      document.getElementById("no-lines")?.remove();
    };
    const row = (kind, ...parts) => {
      const made = document.createElement("div");
      made.className = kind;
      made.append(...parts);
      return made;
    };
    const heard = (message, missed) => {
      const said = JSON.parse(message.data);
      if (missed) return add(row("missed", `… ${said.lines ?? "some"} lines were missed`));
      if (log.dataset.kind === "build") return add(row("", clean(said.line)));
      const time = document.createElement("time"), who = document.createElement("b");
      time.dateTime = said.at;
      time.textContent = `${said.at.slice(0, 19).replace("T", " ")} UTC`;
      who.textContent = clean(said.process);
      add(row(said.source + (said.stream === "stderr" ? " err" : ""), time, " ", who, " ", clean(said.text)));
    };
    // A build's output has an end; an app's log ends when the server does, or access to it.
    const finished = (message) => {
      const ended = log.dataset.kind === "build" && !message.data.includes("reason");
      if (ended) soon(); else add(row("missed", `… ${clean(JSON.parse(message.data).reason ?? "the log was cut off")}`));
      return ended;
    };
    stream(log.dataset.follow, { heard, finished });
  }

  // Charts.
  const charts = document.getElementById("charts");
  if (charts && window.uPlot) draw(charts);

  function draw(charts) {
    const style = getComputedStyle(document.documentElement);
    const colours = ["#2a8fd6", "#d9822b", "#b04bc0", "#cf3f38"];
    // Asked for at each drawing: the theme may change.
    const ink = () => style.getPropertyValue("--pico-muted-color").trim() || "#666";
    const rule = () => style.getPropertyValue("--line").trim() || "#ccc";
    const plots = [...charts.querySelectorAll(".chart")].map((box) => {
      const names = box.dataset.series.split(" ");
      const axis = { stroke: ink, grid: { stroke: rule, width: 1 }, ticks: { stroke: rule, width: 1 } };
      const plot = new uPlot({
        width: box.clientWidth, height: 170, legend: { show: names.length > 1, live: false },
        axes: [axis, { ...axis, size: 52 }],
        scales: { y: { range: (_, low, high) => [0, Math.max(high ?? 0, 1)] } },
        series: [{}, ...names.map((name, at) => ({ label: name.replace(/^status_|_bytes_per_second$|_bytes|_ms$/g, "").replace(/_/g, " "), stroke: colours[at % 4], width: 1.6, spanGaps: false }))],
      }, [[], ...names.map(() => [])], box);
      return { box, names, plot, scale: Number(box.dataset.scale || 1) };
    });
    const load = async () => {
      const hours = Number(charts.dataset.hours);
      const from = new Date(Date.now() - hours * 3600e3).toISOString();
      const answer = await fetch(`${charts.dataset.charts}&from=${encodeURIComponent(from)}`);
      if (!answer.ok) return;
      const { series } = await answer.json();
      const at = series.at.map((moment) => Date.parse(moment) / 1000);
      for (const { names, plot, scale } of plots) {
        plot.setData([at, ...names.map((name) => series[name].map((value) => (value === null ? null : value / scale)))]);
      }
    };
    new ResizeObserver(() => { for (const { box, plot } of plots) plot.setSize({ width: box.clientWidth, height: 170 }); }).observe(charts);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { for (const { plot } of plots) plot.redraw(); });
    load();
    // A point is measured every ten seconds, and nothing tells of it.
    setInterval(() => { if (!document.hidden) { load(); refresh(); } }, 10000);
  }

  // Buttons that copy.
  function copiers(within) {
    if (!navigator.clipboard) return;
    for (const text of within.querySelectorAll("pre.copy")) after(text);
  }
  function after(text) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "secondary outline small copier";
    button.textContent = "Copy";
    button.onclick = async () => { await navigator.clipboard.writeText(text.textContent); button.textContent = "Copied"; };
    text.after(button);
  }

  tellTimes(document);
  copiers(document);
  setInterval(() => tellTimes(document), 5000);
})();
