// The page's own script: language, theme, keys, what is said of a word, and completion in prompt boxes. It runs before Gradio's.
window.danqing = (() => {
  const language = document.documentElement.lang || "en";
  // Gradio's own words follow the browser: where a person switched, it is told so
  const locale = language === "zh" ? "zh-CN" : "en";
  if (!navigator.language.startsWith(language)) {
    Object.defineProperty(navigator, "language", { get: () => locale });
    Object.defineProperty(navigator, "languages", { get: () => [locale] });
  }
  const stored = localStorage.getItem("danqing-theme");
  const url = new URL(location.href);
  if ((stored === "light" || stored === "dark") && url.searchParams.get("__theme") !== stored) {
    url.searchParams.set("__theme", stored);
    history.replaceState(history.state, "", url);
  }

  // What a handler refuses is shown here: Gradio shows only what comes by its queue, which the page does without.

  const failures = {
    413: ["this is too large to be sent", "太大，无法发送"],
    429: ["too many requests; wait a little", "请求太多，请稍等片刻"],
    0: ["the studio does not answer", "画室没有应答"],
  };
  let notice = null;
  const tell = (status, text) => {
    const html = failures[status]?.[language === "zh" ? 1 : 0] ?? text;
    const said = new DOMParser().parseFromString(html ?? "", "text/html").body.textContent; // Gradio's texts are HTML
    if (!said || (notice?.isConnected && notice.textContent === said)) return; // a job that is followed asks again and again
    notice?.remove();
    const made = (notice = document.createElement("div"));
    made.className = "dq-notice";
    made.setAttribute("role", "alert");
    made.textContent = said;
    made.addEventListener("click", () => made.remove());
    setTimeout(() => made.remove(), 10000);
    document.body.append(made);
  };
  const ask = window.fetch;
  window.fetch = async (...sent) => {
    const place = String(sent[0]?.url ?? sent[0]);
    const ours = place.includes("/gradio_api/run/") || place.includes("/gradio_api/upload");
    try {
      const answer = await ask(...sent);
      if (ours && !answer.ok) answer.clone().json().then((said) => tell(answer.status, said.error ?? said.detail), () => tell(answer.status));
      return answer;
    } catch (error) {
      if (ours && error.name !== "AbortError") tell(0);
      throw error;
    }
  };

  const visible = (selector) => [...document.querySelectorAll(selector)].find((each) => each.offsetParent !== null);
  const button = (selector) => {
    const found = visible(selector);
    return found && (found.matches("button") ? found : found.querySelector("button"));
  };

  document.addEventListener(
    "keydown",
    (event) => {
      if (list.onKey(event)) return;
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        const paint = button(".dq-paint");
        if (!paint) return;
        event.preventDefault();
        event.stopPropagation();
        // a text's last letters are taken over before the button is
        document.activeElement?.dispatchEvent(new Event("change", { bubbles: true }));
        setTimeout(() => paint.click(), 50);
      } else if (event.key === "Escape" && !event.isComposing && !document.fullscreenElement) {
        // where it closes something else, a list of choices or a large picture, it ends no painting
        const within = document.activeElement;
        if (!within?.closest(".preview") && within?.getAttribute("aria-expanded") !== "true") button(".dq-interrupt")?.click();
      }
    },
    true,
  );

  // completion

  let words = null;
  const stem = (name) => name.split("/").pop().replace(/\.(safetensors|sft|ckpt|pt|pth|bin|gguf)$/i, "");
  const called = { lora: (name) => `<lora:${name}:1>`, hypernetwork: (name) => `<hypernet:${name}:1>`, embedding: (name) => name };
  const load = () =>
    (words ??= (async () => {
      const [models, tags] = await Promise.all(
        ["/api/v1/models", "/api/v1/tags"].map(async (place) => (await fetch(place)).json()),
      );
      const found = Object.keys(tags).map((tag) => ({ key: tag.toLowerCase(), text: tag, adapter: false }));
      for (const model of models) {
        if (!(model.kind in called)) continue;
        const name = stem(model.name);
        found.push({ key: name.toLowerCase(), text: called[model.kind](name), adapter: model.kind !== "embedding" });
      }
      return found;
    })().catch(() => {
      words = null; // another time, perhaps
      return [];
    }));

  const list = {
    box: null,
    area: null,
    begun: 0,
    found: [],
    at: 0,
    close() {
      this.box?.remove();
      this.box = null;
      this.found = [];
      this.area?.removeAttribute("aria-activedescendant");
    },
    async look(area) {
      const before = area.value.slice(0, area.selectionStart);
      const match = /<(?:lora:|lyco:|hypernet:)?([^<>:,]*)$/i.exec(before) ?? /(?:^|[\s,(|])([^\s,(|<>:]{2,})$/.exec(before);
      if (!match) return this.close();
      const adapters = match[0].startsWith("<");
      const part = match[1].toLowerCase();
      const all = await load();
      if (area.value.slice(0, area.selectionStart) !== before) return; // typed on: a later look has the word
      if (document.activeElement !== area) return this.close();
      const fits = all.filter((each) => (!adapters || each.adapter) && each.key.includes(part) && each.text.toLowerCase() !== part);
      fits.sort((a, b) => b.key.startsWith(part) - a.key.startsWith(part) || a.key.localeCompare(b.key));
      this.found = fits.slice(0, 8);
      this.begun = before.length - (adapters ? match[0].length : match[1].length);
      this.area = area;
      this.at = 0;
      this.show();
    },
    show() {
      const found = this.found;
      this.close();
      if (!found.length) return;
      this.found = found;
      this.box = document.createElement("ul");
      this.box.className = "dq-complete";
      this.box.setAttribute("role", "listbox");
      found.forEach((each, index) => {
        const row = document.createElement("li");
        row.textContent = each.text;
        row.setAttribute("role", "option");
        row.id = `dq-complete-${index}`;
        row.setAttribute("aria-selected", String(index === this.at));
        row.addEventListener("mousedown", (event) => {
          event.preventDefault();
          this.take(index);
        });
        this.box.append(row);
      });
      const place = this.area.getBoundingClientRect();
      this.box.style.left = `${place.left + scrollX}px`;
      this.box.style.top = `${place.bottom + scrollY}px`;
      document.body.append(this.box);
      this.area.setAttribute("aria-activedescendant", `dq-complete-${this.at}`);
    },
    take(index) {
      const { area, begun, found } = this;
      const rest = area.value.slice(area.selectionStart);
      const value = area.value.slice(0, begun) + found[index].text + rest;
      const caret = begun + found[index].text.length;
      this.close();
      area.dataset.taken = "yes";
      fill(area, value);
      area.setSelectionRange(caret, caret);
    },
    onKey(event) {
      if (!this.box || event.ctrlKey || event.metaKey || event.isComposing) return false;
      const moves = { ArrowDown: 1, ArrowUp: -1 };
      if (event.key in moves) {
        this.at = (this.at + moves[event.key] + this.found.length) % this.found.length;
        this.show();
      } else if (event.key === "Tab" || event.key === "Enter") this.take(this.at);
      else if (event.key === "Escape") this.close();
      else return false;
      event.preventDefault();
      event.stopPropagation();
      return true;
    },
  };
  document.addEventListener("input", (event) => {
    const area = event.target;
    if (!(area instanceof HTMLTextAreaElement) || !area.closest(".dq-prompt")) return;
    if (area.dataset.taken) {
      delete area.dataset.taken;
      return;
    }
    if (!event.isComposing) list.look(area);
  });
  document.addEventListener("focusout", () => list.close());

  // buttons within HTML: language, theme, prompts to try, models to take, jobs to move

  const fill = (area, text) => {
    const kind = area instanceof HTMLTextAreaElement ? HTMLTextAreaElement : HTMLInputElement;
    Object.getOwnPropertyDescriptor(kind.prototype, "value").set.call(area, text);
    area.dispatchEvent(new Event("input", { bubbles: true }));
  };
  let presses = 0; // beside the word, so that the same button pressed twice is a change too
  const hand = (box, word) => fill(document.querySelector(`${box} :is(textarea, input)`), `${word}#${++presses}`);
  document.addEventListener("click", (event) => {
    const pressed = event.target instanceof Element && event.target.closest("[data-dq-language],[data-dq-theme],[data-dq-prompt],[data-dq-take],[data-dq-job]");
    if (!pressed) return;
    const { dqLanguage, dqPrompt, dqTake, dqJob } = pressed.dataset;
    if (dqLanguage) api.language("danqing_language", dqLanguage);
    else if (dqPrompt) {
      const area = document.querySelector("#txt2img-prompt textarea");
      area.dataset.taken = "yes";
      fill(area, dqPrompt);
      setTimeout(() => button("#txt2img-paint")?.click(), 50);
    } else if (dqTake) hand("#models-taken", dqTake);
    else if (dqJob) hand("#settings-order", dqJob);
    else api.theme(document.body.classList.contains("dark") ? "light" : "dark");
  });

  // numbers in boxes of text: a phone's keyboard has digits, arrow keys count

  document.addEventListener("focusin", (event) => {
    if (event.target.closest?.(".dq-number")) event.target.inputMode = "decimal";
  });
  document.addEventListener("keydown", (event) => {
    const box = event.target;
    if (!(event.key === "ArrowUp" || event.key === "ArrowDown") || !box.closest?.(".dq-number")) return;
    const now = Number(box.value || box.placeholder);
    if (!Number.isSafeInteger(Math.round(now)) || Number.isNaN(now)) return;
    event.preventDefault();
    const step = Number.isInteger(now) ? (now >= 64 && now % 8 === 0 ? 8 : 1) : 0.1;
    const next = Math.max(0, now + (event.key === "ArrowUp" ? step : -step));
    fill(box, Number.isInteger(now) ? String(next) : String(Math.round(next * 100) / 100));
  });

  // what is said of a word: Gradio's line under a label is shown in a bubble, by mouse or finger;
  // readers aloud find it where it is

  let bubble = null;
  let soon = 0;
  const hide = () => {
    clearTimeout(soon);
    bubble?.remove();
    bubble = null;
  };
  const show = (word, said) => {
    if (!word.isConnected) return;
    bubble = document.createElement("div");
    bubble.className = "dq-bubble";
    bubble.setAttribute("role", "tooltip");
    bubble.textContent = said;
    document.body.append(bubble);
    const place = word.getBoundingClientRect();
    const left = Math.min(place.left, document.documentElement.clientWidth - bubble.offsetWidth - 12);
    const above = place.top > bubble.offsetHeight + 12;
    bubble.style.left = `${Math.max(12, left) + scrollX}px`;
    bubble.style.top = `${(above ? place.top - bubble.offsetHeight - 7 : place.bottom + 7) + scrollY}px`;
  };
  // buttons, pictures and boxes without a label have no such line: theirs are in the page, by selectors
  let tips = null;
  const tipOf = (target) => {
    tips ??= JSON.parse(document.querySelector("[data-dq-tips]")?.dataset.dqTips ?? "null");
    for (const [selector, said] of Object.entries(tips ?? {})) {
      const control = target.closest(selector);
      if (control) return [control, said];
    }
    return null;
  };
  const explain = (event) => {
    hide();
    if (!(event.target instanceof Element)) return;
    const word = event.target.closest(".has-info");
    const said = word && word.parentElement.querySelector(".info-text")?.textContent.trim();
    if (said) return show(word, said);
    if (event.type !== "pointerover" || event.pointerType !== "mouse") return; // a press on a button is for the button
    const tip = tipOf(event.target);
    if (tip) soon = setTimeout(() => show(...tip), 600);
  };
  document.addEventListener("pointerover", explain);
  document.addEventListener("pointerdown", explain);
  document.addEventListener("scroll", hide, true);
  document.addEventListener("keydown", hide);

  const api = {
    language(cookie, name) {
      document.cookie = `${cookie}=${name}; path=/; max-age=31536000; samesite=strict`;
      location.reload();
    },
    chosen: () => localStorage.getItem("danqing-theme") ?? "system",
    theme(name) {
      const next = new URL(location.href);
      if (name === "system") {
        localStorage.removeItem("danqing-theme");
        next.searchParams.delete("__theme");
      } else {
        localStorage.setItem("danqing-theme", name);
        next.searchParams.set("__theme", name);
      }
      location.href = next.href;
    },
  };
  return api;
})();
