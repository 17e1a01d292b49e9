// Photos (chosen, taken, dropped, pasted) -> a request each -> a card each: the prediction, the photo and its class
// activation map. Names of files and classes are untrusted: they are inserted as text, never as markup.

const MAX_REQUESTS = 2; // at a time; more would only wait at the server
const MAX_RETRIES = 5; // while the server is busy
const ENVELOPE_BYTES = 1024; // upper bound of a request's size without its photo
const MAX_LISTED_CLASSES = 6; // below the title
const RETRYABLE = ["unreachable", "still_busy", "refused"]; // errors that another request may not meet
const LOCALES = { en: "en-GB", zh: "zh-CN" };
const TEXTS = {
  en: {
    title: "What does the photo show?", few: "{names}?", many: "Classifies photos into {n} classes.", other: "中文",
    choose: "Choose photos", take: "Take a photo", hint: "Or drop photos anywhere on this page, or paste one.",
    count: "Photos: {n}", remaining: "Photos: {n}, remaining: {left}", clear: "Clear all", remove: "Remove {name}",
    waiting: "Waiting …", predicting: "Predicting …", retry: "Try again", percent: "{n}\u00a0%",
    busy: "The server is busy. Trying again in {n} s …", nearest: "Most probable class: {label}, {share}",
    rejected: "Out of distribution: perhaps none of these classes.", announcement: "{name}: {text}",
    photo: "The photo {name}", evidence: "Class activation map", heat: "Class activation map for {label}",
    for: "evidence for {label}", against: "evidence against it",
    undrawable: "This browser cannot display the photo. The prediction is unaffected.", unreadable: "Cannot be read: ",
    unreachable: "The server cannot be reached.", refused: "Not predicted: ", still_busy: "The server stayed busy: ",
    too_large: "{size} MiB, more than the limit of {limit} MiB. It was not sent.",
    gone: "A folder, or a file that no longer exists.", token: "Token", submit: "Continue",
    token_required: "This server requires a token.", token_wrong: "Wrong token.", about: "About this model",
    network: "Network", input: "Input", pixels: "{n} × {n} pixels", classes: "Classes ({n})", card: "Model card",
    middle: "{n} × {n} pixels: the central {share} of the shorter side",
    crops: "The model was trained on images cropped to the object: crop your photos in the same way.",
  },
  zh: {
    title: "照片里是什么？", few: "{names}？", many: "将照片分为 {n} 个类别。", other: "English", choose: "选择照片", take: "拍照",
    hint: "也可以把照片拖到页面任意位置，或直接粘贴。", count: "共 {n} 张照片", remaining: "共 {n} 张照片，还剩 {left} 张",
    clear: "全部清除", remove: "移除 {name}", waiting: "等待中…", predicting: "正在预测…", retry: "重试", percent: "{n}%",
    busy: "服务器繁忙，{n} 秒后重试…", nearest: "最可能的类别：{label}，{share}", rejected: "分布外图像：可能不属于其中任何一类。",
    announcement: "{name}：{text}", photo: "照片 {name}", evidence: "类激活图", heat: "“{label}”的类激活图",
    for: "支持“{label}”的证据", against: "反对该类别的证据", undrawable: "浏览器无法显示这张照片，但预测不受影响。",
    unreadable: "无法读取：", unreachable: "无法连接服务器。", refused: "未能预测：", still_busy: "服务器一直繁忙：",
    too_large: "{size} MiB，超过上限 {limit} MiB，未发送。", gone: "这是文件夹，或文件已不存在。", token: "访问令牌",
    submit: "继续", token_required: "此服务器需要访问令牌。", token_wrong: "访问令牌不正确。", about: "关于此模型",
    network: "网络", input: "输入", pixels: "{n} × {n} 像素", classes: "类别（{n}）", card: "模型卡",
    middle: "{n} × {n} 像素，取短边中间的 {share}",
    crops: "该模型使用裁剪到目标的图像训练：请先将照片裁剪到目标区域再上传。",
  },
};

const byId = (id) => document.getElementById(id);
const photos = []; // as on the page: the newest batch first
const queue = []; // those that are to be sent
let language, info, loading;
let [requestsInProgress, locked, strength] = [0, false, 70];
let token = storage("sessionStorage", "fieldmark-token");

/** Why there is no prediction: the key of a text and its values; `values.reason` is the server's message. */
const failure = (key, values = {}) => Object.assign(new Error(key), { key, values });

// ---- texts
const translate = (key, values = {}) => TEXTS[language][key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
const percent = (share, digits = 1) => translate("percent", { n: (100 * share).toFixed(digits) });
const otherLanguage = () => (language === "en" ? "zh" : "en");

/** Read from the browser's storage, or write a value; where storage is forbidden, a value lasts as long as the page. */
function storage(store, key, value) {
  try {
    return value === undefined ? window[store].getItem(key) : window[store].setItem(key, value);
  } catch { return null; }
}

function setLanguage(to) {
  language = to;
  document.documentElement.lang = LOCALES[to];
  document.title = `${translate("title")} · Fieldmark`;
  for (const root of [document, byId("card").content]) {
    for (const element of root.querySelectorAll("[data-text]")) {
      element.textContent = translate(element.dataset.text);
    }
  }
  Object.assign(byId("language"), { textContent: translate("other"), lang: LOCALES[otherLanguage()] });
  byId("token-message").textContent = translate(token ? "token_wrong" : "token_required");
  byId("announcements").replaceChildren();
  photos.forEach(render);
  if (info) showModel();
  updateCount();
}

function createElement(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// ---- the server
const read = (response) => response.json().catch(() => ({ error: `HTTP ${response.status}` }));

/** The response of the server. While it is busy the request is repeated; `onBusy` gets the seconds until then. */
async function request(path, options = {}, onBusy = () => {}) {
  for (let retries = 0; ; retries++) {
    const usedToken = token;
    const headers = usedToken ? { Authorization: `Bearer ${usedToken}` } : {};
    const response = await fetch(path, { ...options, headers }).catch(() => { throw failure("unreachable"); });
    if (response.status === 401) throw failure("locked", { usedToken });
    if (response.status !== 429 && response.status !== 503) return response;
    if (retries === MAX_RETRIES) throw failure("still_busy", { reason: (await read(response)).error });
    const n = Number(response.headers.get("Retry-After")) || 1;
    onBusy(n);
    await new Promise((done) => { setTimeout(done, 1000 * n); options.signal?.addEventListener("abort", done); });
  }
}

/** Fetch `info` once; after a failure the next call tries again. */
function loadModel() {
  loading ??= request("card").then(read).then((card) => {
    if (card.error) throw failure("refused", { reason: card.error });
    info = card;
    showModel();
  }).catch((error) => { loading = undefined; throw error; });
  return loading;
}

/** Send the file unchanged, never resized: the same bytes get the same prediction everywhere. */
async function predict(photo) {
  const { file, removed: { signal } } = photo;
  await loadModel();
  const [size, limit] = [file.size, info.limits.bytes].map((n) => (n / 2 ** 20).toFixed(1));
  if (file.size + ENVELOPE_BYTES > info.limits.bytes) throw failure("too_large", { size, limit });
  await file.slice(0, 1).arrayBuffer().catch(() => { throw failure("gone"); });
  setState(photo, "predicting");
  const body = new FormData();
  body.append("photo", file);
  const options = { method: "POST", body, signal };
  const onBusy = (n) => setState(photo, "busy", { n });
  const rows = await read(await request("predict?evidence=true", options, onBusy));
  if (!Array.isArray(rows)) throw failure("refused", { reason: rows.error });
  if (rows[0].error) throw failure("unreadable", { reason: rows[0].error });
  return rows[0];
}

function sendNext() {
  while (!locked && requestsInProgress < MAX_REQUESTS && queue.length) {
    const photo = queue.shift();
    requestsInProgress += 1;
    predict(photo)
      .then((prediction) => setState(photo, "predicted", prediction), (error) => handleError(photo, error))
      .finally(() => { requestsInProgress -= 1; sendNext(); });
  }
}

function handleError(photo, error) {
  if (error.key !== "locked") {
    return setState(photo, "failed", error.key ? error : failure("refused", { reason: String(error) }));
  }
  queue.unshift(photo);
  setState(photo, "waiting");
  requireToken(error.values.usedToken);
}

/** Send nothing until the user enters a token; a request that was refused with an older one is simply repeated. */
function requireToken(usedToken) {
  if (usedToken !== token) return;
  [locked, loading, byId("token-form").hidden] = [true, undefined, false];
  byId("token-message").textContent = translate(token ? "token_wrong" : "token_required");
  byId("token").focus();
}

function connect() {
  loadModel().then(() => { [locked, byId("token-form").hidden] = [false, true]; sendNext(); }, ({ key, values }) => {
    if (key === "locked") requireToken(values.usedToken);
    else byId("token-message").textContent = translate(key, values) + (values.reason ?? "");
  });
}

// ---- photos and their cards
function add(files) {
  const batch = [...files].map(createCard);
  if (!batch.length) return;
  photos.unshift(...batch);
  queue.push(...batch);
  byId("cards").prepend(...batch.map((photo) => photo.card));
  const show = () => batch[0].card.scrollIntoView({ block: "nearest" });
  batch[0].part("picture").addEventListener("load", show);
  show();
  sendNext();
  updateCount();
}

/** The elements of a card stay while their content changes, so that the focus is not lost. */
function createCard(file) {
  const card = byId("card").content.firstElementChild.cloneNode(true);
  const part = (name) => card.querySelector(`.${name}`);
  const photo = { file, card, part, state: "waiting", result: {}, removed: new AbortController() };
  Object.assign(part("file"), { textContent: file.name, title: file.name });
  Object.assign(part("picture"), { src: URL.createObjectURL(file), onload: () => placeOverlay(photo) });
  part("picture").onerror = () => { card.dataset.hidden = true; };
  part("slider").value = strength;
  part("slider").oninput = () => { strength = part("slider").value; placeOverlay(photo); };
  part("retry").onclick = () => { part("remove").focus(); queue.push(photo); setState(photo, "waiting"); sendNext(); };
  part("remove").onclick = () => {
    const after = photos[photos.indexOf(photo) + 1];
    remove([photo]);
    (after?.part("remove") ?? byId("choose")).focus();
  };
  render(photo);
  return photo;
}

const isFinished = ({ state }) => state === "predicted" || state === "failed";

/** The `result` is a prediction, an error of `failure`, or the values of the state's text. */
function setState(photo, state, result = {}) {
  if (photo.removed.signal.aborted) return;
  Object.assign(photo, { state, result });
  render(photo);
  updateCount();
  if (!isFinished(photo)) return;
  const text = `${photo.part("label").textContent} ${photo.part("nearest").textContent}`;
  const textContent = translate("announcement", { name: photo.file.name, text });
  byId("announcements").append(createElement("p", { textContent }));
}

/** Update the content of a card. What is visible is decided in page.css, by the `data-` attributes. */
function render(photo) {
  const { card, part, file: { name }, state, result } = photo;
  const rejected = result.known === false;
  const [evidence, retry] = [Boolean(result.evidence), RETRYABLE.includes(result.key)];
  Object.assign(card.dataset, { state, rejected, evidence, retry });
  card.ariaBusy = String(!isFinished(photo));
  part("remove").ariaLabel = translate("remove", { name });
  part("picture").alt = translate("photo", { name });
  part("label").replaceChildren(...headline(photo));
  part("nearest").textContent = rejected ? translate("nearest", { ...result, share: percent(result.confidence) }) : "";
  part("bars").replaceChildren(...(result.top ?? []).map(bar));
  if (!result.evidence) return;
  Object.assign(part("heat"), { src: result.evidence, alt: translate("heat", result) });
  part("pro").textContent = translate("for", result);
  placeOverlay(photo);
}

/** Messages of the server are in English, whatever the language of the page. */
function headline({ state, result }) {
  if (state === "failed") {
    const reason = createElement("span", { lang: "en" }, result.values.reason ?? "");
    return [translate(result.key, result.values), reason];
  }
  if (state !== "predicted") return [translate(state, result)];
  if (!result.known) return [translate("rejected")];
  return [result.label, " ", createElement("span", { className: "share" }, percent(result.confidence))];
}

function bar({ label, confidence }) {
  const value = createElement("i");
  value.style.width = `${100 * confidence}%`;
  const share = createElement("span", { className: "share" }, percent(confidence));
  const track = createElement("span", { className: "track" }, value);
  return createElement("li", {}, createElement("span", { dir: "auto" }, label), share, track);
}

/** The map covers the network's input, the whole photo or its central square, at any size on the page. */
function placeOverlay({ part }) {
  const { naturalWidth: width, naturalHeight: height } = part("picture");
  const { crop = 1, fit = "crop" } = info?.preprocessing ?? {};
  const [side, opacity] = [crop * Math.min(width, height), part("slider").value / 100];
  part("slider").ariaValueText = percent(opacity, 0);
  if (!side) return; // not loaded yet
  part("frame").style.setProperty("--ratio", width / height);
  const covered = fit === "squash" ? [crop, crop] : [side / width, side / height];
  Object.assign(part("heat").style, { width: `${100 * covered[0]}%`, height: `${100 * covered[1]}%`, opacity });
}

function remove(removedPhotos) {
  for (const { card, part, removed } of removedPhotos) {
    removed.abort();
    URL.revokeObjectURL(part("picture").src);
    card.remove();
  }
  for (const list of [photos, queue]) {
    list.splice(0, Infinity, ...list.filter((photo) => !removedPhotos.includes(photo)));
  }
  updateCount();
}

function updateCount() {
  const left = photos.filter((photo) => !isFinished(photo)).length;
  byId("toolbar").hidden = !photos.length;
  byId("count").textContent = translate(left ? "remaining" : "count", { n: photos.length, left });
}

function showModel() {
  const { classes, network, preprocessing: { size: n, crop }, trained_on_crops: trainedOnCrops, text } = info;
  const names = new Intl.ListFormat(LOCALES[language], { type: "disjunction" }).format(classes);
  const question = classes.length > MAX_LISTED_CLASSES ? "many" : "few";
  byId("question").textContent = translate(question, { n: classes.length, names });
  byId("crops").hidden = !trainedOnCrops;
  byId("network").textContent = network;
  byId("input").textContent = translate(crop < 1 ? "middle" : "pixels", { n, share: percent(crop) });
  byId("classes-title").textContent = translate("classes", { n: classes.length });
  byId("classes").replaceChildren(...classes.map((name) => createElement("li", { dir: "auto" }, name)));
  byId("text").textContent = text?.replace(/^---\n.*?\n---\n/s, "").trim(); // without its YAML front matter
  [byId("card-of").hidden, byId("model").hidden] = [!text, false];
}

// ---- events
for (const input of [byId("choose"), byId("take")]) {
  input.onchange = () => { add(input.files); input.value = ""; }; // so that the same photo can be chosen again
}
byId("clear").onclick = () => { remove([...photos]); byId("choose").focus(); };
byId("language").onclick = () => { setLanguage(otherLanguage()); storage("localStorage", "fieldmark-language", language); };
byId("to-about").onclick = () => { byId("about").open = true; byId("about").firstElementChild.focus(); };
byId("token-form").onsubmit = (event) => {
  event.preventDefault();
  token = byId("token").value;
  storage("sessionStorage", "fieldmark-token", token);
  connect();
};
const highlightDrop = (is) => document.body.classList.toggle("over", is);
const hasFiles = ({ dataTransfer }) => dataTransfer.types.includes("Files");
addEventListener("dragover", (event) => { if (hasFiles(event)) { event.preventDefault(); highlightDrop(true); } });
addEventListener("dragleave", ({ relatedTarget }) => { if (!relatedTarget) highlightDrop(false); });
addEventListener("drop", (event) => {
  if (hasFiles(event)) event.preventDefault();
  highlightDrop(false);
  add(event.dataTransfer.files);
});
addEventListener("paste", (event) => add(event.clipboardData.files));

const storedLanguage = storage("localStorage", "fieldmark-language");
setLanguage(storedLanguage in TEXTS ? storedLanguage : navigator.language.startsWith("zh") ? "zh" : "en");
connect();
