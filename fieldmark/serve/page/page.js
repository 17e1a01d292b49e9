// Photos in (chosen, taken, dropped, pasted) -> a request each -> a card each: the answer, the photo and why.
// Names of files and classes come from strangers: they are written as text and never become markup.

const AT_ONCE = 2; // requests; more of them would only wait at the server
const TRIES = 5; // after the first, where the server is busy
const ENVELOPE = 1024; // bytes of a request around its photo, at most
const NAMED = 6; // up to so many classes are named below the title
const AGAIN = ["unreachable", "still_busy", "refused"]; // what another try may change
const LOCALES = { en: "en-GB", zh: "zh-CN" };
const TEXTS = {
  en: {
    title: "What does the photo show?", few: "{names}?", many: "It tells {n} classes apart.", other: "中文",
    choose: "Choose photos", take: "Take a photo", hint: "Or drop photos anywhere on this page, or paste one.",
    tally: "Photos: {n}", left: "Photos: {n}, still to come: {left}", clear: "Clear all", remove: "Remove {name}",
    waiting: "Waiting for its turn …", looking: "Looking at it …", again: "Try again", percent: "{n}\u00a0%",
    busy: "The server is busy. Trying again in {n} s …", stranger: "Perhaps none of these.",
    nearest: "Nearest: {label}, {share}", said: "{name}: {text}", photo: "The photo {name}", evidence: "Evidence",
    heat: "What spoke for and against {label}", for: "spoke for {label}", against: "spoke against it",
    undrawable: "This browser cannot show the photo. The answer holds all the same.", unreadable: "Cannot be read: ",
    unreachable: "The server cannot be reached.", refused: "Not answered: ", still_busy: "The server stayed busy: ",
    too_large: "{size} MiB, more than the {limit} MiB that the server takes. It was not sent.",
    gone: "A folder, or a file that is no longer there.", token: "Token", enter: "Go on",
    closed: "This server wants a token.", wrong: "That is not the token of this server.", about: "About this model",
    network: "network", input: "sees", pixels: "{n} × {n} pixels", classes: "Classes ({n})", card: "Model card",
    middle: "{n} × {n} pixels: the middle {share} of the shorter side",
    crops: "The model was trained on images cropped to the object: crop your photos in the same way.",
  },
  zh: {
    title: "照片里是什么？", few: "{names}？", many: "可分辨 {n} 个类别。", other: "English", choose: "选择照片", take: "拍照",
    hint: "也可以把照片拖到页面任意位置，或直接粘贴。", tally: "共 {n} 张照片", left: "共 {n} 张照片，还剩 {left} 张",
    clear: "全部清除", remove: "移除 {name}", waiting: "正在排队…", looking: "正在识别…", again: "重试", percent: "{n}%",
    busy: "服务器繁忙，{n} 秒后重试…", stranger: "可能不属于任何一类。", nearest: "最接近：{label}，{share}",
    said: "{name}：{text}", photo: "照片 {name}", evidence: "证据图", heat: "支持和反对“{label}”的证据", for: "支持“{label}”",
    against: "反对", undrawable: "浏览器无法显示这张照片，但答案仍然有效。", unreadable: "无法读取：",
    unreachable: "无法连接服务器。", refused: "未能作答：", still_busy: "服务器一直繁忙：",
    too_large: "{size} MiB，超过服务器上限 {limit} MiB，未发送。", gone: "这是文件夹，或文件已不存在。", token: "访问令牌",
    enter: "继续", closed: "此服务器需要访问令牌。", wrong: "访问令牌不正确。", about: "关于此模型", network: "网络",
    input: "输入", pixels: "{n} × {n} 像素", classes: "类别（{n}）", card: "模型卡", middle: "{n} × {n} 像素，取短边中间的 {share}",
    crops: "该模型使用裁剪到目标的图像训练：请先将照片裁剪到目标区域再上传。",
  },
};

const at = (id) => document.getElementById(id);
const photos = []; // as on the page: the newest batch first
const queue = []; // those of them that nobody has asked about yet
let language, info, loading;
let [asking, locked, strength] = [0, false, 70];
let token = kept("sessionStorage", "fieldmark-token");

/** Why there is no answer: the key of a text and its values; the server's own words are `values.reason`. */
const problem = (key, values = {}) => Object.assign(new Error(key), { key, values });

// ---- words
const say = (key, values = {}) => TEXTS[language][key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
const percent = (share, digits = 1) => say("percent", { n: (100 * share).toFixed(digits) });
const other = () => (language === "en" ? "zh" : "en");

/** Reads, with a value writes. A browser may forbid its stores: then what stands there holds for this page only. */
function kept(store, key, value) {
  try {
    return value === undefined ? window[store].getItem(key) : window[store].setItem(key, value);
  } catch { return null; }
}

function speak(to) {
  language = to;
  document.documentElement.lang = LOCALES[to];
  document.title = `${say("title")} · Fieldmark`;
  for (const root of [document, at("card").content]) {
    for (const one of root.querySelectorAll("[data-text]")) one.textContent = say(one.dataset.text);
  }
  Object.assign(at("language"), { textContent: say("other"), lang: LOCALES[other()] });
  at("door-says").textContent = say(token ? "wrong" : "closed");
  at("said").replaceChildren();
  photos.forEach(draw);
  if (info) describe();
  tally();
}

function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// ---- the server
const read = (response) => response.json().catch(() => ({ error: `HTTP ${response.status}` }));

/** A response that is worth reading. A busy server is asked again; `onBusy` hears in how many seconds. */
async function request(path, options = {}, onBusy = () => {}) {
  for (let tries = 0; ; tries++) {
    const used = token;
    const headers = used ? { Authorization: `Bearer ${used}` } : {};
    const response = await fetch(path, { ...options, headers }).catch(() => { throw problem("unreachable"); });
    if (response.status === 401) throw problem("locked", { used });
    if (response.status !== 429 && response.status !== 503) return response;
    if (tries === TRIES) throw problem("still_busy", { reason: (await read(response)).error });
    const n = Number(response.headers.get("Retry-After")) || 1;
    onBusy(n);
    await new Promise((done) => { setTimeout(done, 1000 * n); options.signal?.addEventListener("abort", done); });
  }
}

/** Fetches `info` once; after a failure, whoever asks next fetches it anew. */
function model() {
  loading ??= request("card").then(read).then((told) => {
    if (told.error) throw problem("refused", { reason: told.error });
    info = told;
    describe();
  }).catch((why) => { loading = undefined; throw why; });
  return loading;
}

/** The file goes as it is, never made smaller: the same bytes get the same answer everywhere. */
async function ask(photo) {
  const { file, removed: { signal } } = photo;
  await model();
  const [size, limit] = [file.size, info.limits.bytes].map((n) => (n / 2 ** 20).toFixed(1));
  if (file.size + ENVELOPE > info.limits.bytes) throw problem("too_large", { size, limit });
  await file.slice(0, 1).arrayBuffer().catch(() => { throw problem("gone"); });
  become(photo, "looking");
  const body = new FormData();
  body.append("photo", file);
  const options = { method: "POST", body, signal };
  const told = await read(await request("predict?evidence=true", options, (n) => become(photo, "busy", { n })));
  if (!Array.isArray(told)) throw problem("refused", { reason: told.error });
  if (told[0].error) throw problem("unreadable", { reason: told[0].error });
  return told[0];
}

function next() {
  while (!locked && asking < AT_ONCE && queue.length) {
    const photo = queue.shift();
    asking += 1;
    ask(photo)
      .then((answer) => become(photo, "answered", answer), (why) => fail(photo, why))
      .finally(() => { asking -= 1; next(); });
  }
}

function fail(photo, why) {
  if (why.key !== "locked") return become(photo, "failed", why.key ? why : problem("refused", { reason: String(why) }));
  queue.unshift(photo);
  become(photo, "waiting");
  lock(why.values.used);
}

/** Nothing is sent before the server knows the token; who was sent away with an older one just asks again. */
function lock(used) {
  if (used !== token) return;
  [locked, loading, at("door").hidden] = [true, undefined, false];
  at("door-says").textContent = say(token ? "wrong" : "closed");
  at("token").focus();
}

function enter() {
  model().then(() => { [locked, at("door").hidden] = [false, true]; next(); }, ({ key, values }) => {
    if (key === "locked") lock(values.used);
    else at("door-says").textContent = say(key, values) + (values.reason ?? "");
  });
}

// ---- photos and their cards
function add(files) {
  const batch = [...files].map(place);
  if (!batch.length) return;
  photos.unshift(...batch);
  queue.push(...batch);
  at("cards").prepend(...batch.map((photo) => photo.card));
  const show = () => batch[0].card.scrollIntoView({ block: "nearest" });
  batch[0].part("picture").addEventListener("load", show);
  show();
  next();
  tally();
}

/** A card's parts stay while what is in them changes, so that nobody's focus is lost. */
function place(file) {
  const card = at("card").content.firstElementChild.cloneNode(true);
  const part = (name) => card.querySelector(`.${name}`);
  const photo = { file, card, part, state: "waiting", told: {}, removed: new AbortController() };
  Object.assign(part("file"), { textContent: file.name, title: file.name });
  Object.assign(part("picture"), { src: URL.createObjectURL(file), onload: () => lay(photo) });
  part("picture").onerror = () => { card.dataset.hidden = true; };
  part("slider").value = strength;
  part("slider").oninput = () => { strength = part("slider").value; lay(photo); };
  part("again").onclick = () => { part("remove").focus(); queue.push(photo); become(photo, "waiting"); next(); };
  part("remove").onclick = () => {
    const after = photos[photos.indexOf(photo) + 1];
    remove([photo]);
    (after?.part("remove") ?? at("choose")).focus();
  };
  draw(photo);
  return photo;
}

const ended = ({ state }) => state === "answered" || state === "failed";

function become(photo, state, told = {}) {
  if (photo.removed.signal.aborted) return;
  Object.assign(photo, { state, told });
  draw(photo);
  tally();
  if (!ended(photo)) return;
  const text = `${photo.part("label").textContent} ${photo.part("nearest").textContent}`;
  at("said").append(make("p", { textContent: say("said", { name: photo.file.name, text }) }));
}

/** Writes what the card says. Which of it is seen is decided in page.css, by the `data-` attributes. */
function draw(photo) {
  const { card, part, file: { name }, state, told } = photo;
  const stranger = told.known === false;
  Object.assign(card.dataset, { state, stranger, evidence: Boolean(told.evidence), again: AGAIN.includes(told.key) });
  card.ariaBusy = String(!ended(photo));
  part("remove").ariaLabel = say("remove", { name });
  part("picture").alt = say("photo", { name });
  part("label").replaceChildren(...headline(photo));
  part("nearest").textContent = stranger ? say("nearest", { ...told, share: percent(told.confidence) }) : "";
  part("bars").replaceChildren(...(told.top ?? []).map(bar));
  if (!told.evidence) return;
  Object.assign(part("heat"), { src: told.evidence, alt: say("heat", told) });
  part("pro").textContent = say("for", told);
  lay(photo);
}

/** The server's own words are English, whatever the page speaks. */
function headline({ state, told }) {
  if (state === "failed") return [say(told.key, told.values), make("span", { lang: "en" }, told.values.reason ?? "")];
  if (state !== "answered") return [say(state, told)];
  if (!told.known) return [say("stranger")];
  return [told.label, " ", make("span", { className: "share" }, percent(told.confidence))];
}

function bar({ label, confidence }) {
  const value = make("i");
  value.style.width = `${100 * confidence}%`;
  const share = make("span", { className: "share" }, percent(confidence));
  return make("li", {}, make("span", { dir: "auto" }, label), share, make("span", { className: "track" }, value));
}

/** The evidence lies over what the network saw: the square in the middle of the photo, at any size on the page. */
function lay({ part }) {
  const { naturalWidth: width, naturalHeight: height } = part("picture");
  const [side, opacity] = [(info?.preprocessing.crop ?? 1) * Math.min(width, height), part("slider").value / 100];
  part("slider").ariaValueText = percent(opacity, 0);
  if (!side) return; // not loaded yet
  part("frame").style.setProperty("--ratio", width / height);
  Object.assign(part("heat").style, { width: `${100 * side / width}%`, height: `${100 * side / height}%`, opacity });
}

function remove(gone) {
  for (const { card, part, removed } of gone) { removed.abort(); URL.revokeObjectURL(part("picture").src); card.remove(); }
  for (const list of [photos, queue]) list.splice(0, Infinity, ...list.filter((photo) => !gone.includes(photo)));
  tally();
}

function tally() {
  const left = photos.filter((photo) => !ended(photo)).length;
  at("line").hidden = !photos.length;
  at("tally").textContent = say(left ? "left" : "tally", { n: photos.length, left });
}

function describe() {
  const { classes, network, preprocessing: { size: n, crop }, trained_on_crops: trainedOnCrops, text } = info;
  const names = new Intl.ListFormat(LOCALES[language], { type: "disjunction" }).format(classes);
  at("question").textContent = say(classes.length > NAMED ? "many" : "few", { n: classes.length, names });
  at("crops").hidden = !trainedOnCrops;
  at("network").textContent = network;
  at("input").textContent = say(crop < 1 ? "middle" : "pixels", { n, share: percent(crop) });
  at("classes-title").textContent = say("classes", { n: classes.length });
  at("classes").replaceChildren(...classes.map((name) => make("li", { dir: "auto" }, name)));
  at("text").textContent = text?.replace(/^---\n.*?\n---\n/s, "").trim(); // without its lines for machines
  [at("card-of").hidden, at("model").hidden] = [!text, false];
}

// ---- what people do
for (const input of [at("choose"), at("take")]) {
  input.onchange = () => { add(input.files); input.value = ""; }; // so that the same photo can be chosen again
}
at("clear").onclick = () => { remove([...photos]); at("choose").focus(); };
at("language").onclick = () => { speak(other()); kept("localStorage", "fieldmark-language", language); };
at("to-about").onclick = () => { at("about").open = true; at("about").firstElementChild.focus(); };
at("door").onsubmit = (event) => {
  event.preventDefault();
  token = at("token").value;
  kept("sessionStorage", "fieldmark-token", token);
  enter();
};
const over = (is) => document.body.classList.toggle("over", is);
const carried = ({ dataTransfer }) => dataTransfer.types.includes("Files");
addEventListener("dragover", (event) => { if (carried(event)) { event.preventDefault(); over(true); } });
addEventListener("dragleave", ({ relatedTarget }) => { if (!relatedTarget) over(false); });
addEventListener("drop", (event) => {
  if (carried(event)) event.preventDefault();
  over(false);
  add(event.dataTransfer.files);
});
addEventListener("paste", (event) => add(event.clipboardData.files));

const before = kept("localStorage", "fieldmark-language");
speak(before in TEXTS ? before : navigator.language.startsWith("zh") ? "zh" : "en");
enter();
