// Labels images one key at a time. The server chooses the images; the page holds the next ones with their pictures,
// moves on at once, and posts the answers in the background, in order. Each answer is kept in the browser's storage
// until the server has it. Names of files and classes are untrusted: they are inserted as text, never as markup.

const AHEAD = 3; // questions held beyond the present one
const MAX_TILES = 24; // images of a grid
const MAX_PICTURES = 80; // kept in memory
const MAX_LOADS = 4; // pictures at a time: a browser has six connections, and the answers need one
const MAX_UNDO = 100; // answers whose image need not be asked for again
const FEW_CLASSES = 9; // found without a filter
const MAX_FOUND = 50; // classes listed below the filter
const MAX_ERRORS = 5; // lines of refused answers
const MIN_TEST_IMAGES = 10; // for a statement about accuracy
const MIN_CLASS_TESTS = 5; // for one about the recall of a class
const SMALL_GAIN = 0.005; // of accuracy; below, more labels would hardly help
const TIMEOUT = 30000; // ms, of a request
const [FAST, SLOW] = [2000, 10000]; // ms between two readings of the state
const WAITS = [1000, 2000, 4000, 8000]; // ms before an answer is sent again
const ALL_KEYS = [..."123456789abcdefghijklmnopqrstuvwxyz"];
const CLASS_KEYS = ALL_KEYS.filter((key) => !"nxug".includes(key)); // 31; the others are commands
const TITLES = {
  start: "loading", loading: "title", single: "title", grid: "grid_title", groups: "group_title",
  finished: "finished_title", reading: "reading_title",
};
const KEY_LIST = [
  ["1 … 9, A …", "class"], ["Enter", "enter"], ["N", "n"], ["G", "g"], ["space_key", "space"], ["X", "x"], ["U", "u"],
  ["/", "filter"], ["arrow_keys", "arrows"], ["Esc", "escape"],
];
const REASONS = ["random", "uncertain", "new", "suspicious", "duplicates", "duplicates_many"];
const LOCALES = { en: "en-GB", zh: "zh-CN" };
const TEXTS = {
  en: {
    other: "中文", groups: "Show groups", keys: "Keys", token: "Token", submit: "Continue", try_now: "Try now",
    token_required: "This server requires a token. It is part of the address that the command printed.",
    token_wrong: "Wrong token.", title: "What does the image show?", loading: "Loading …",
    group_title: "These images look alike. What do they show?",
    grid_title: "Similar images. Which are the same class?", finished_title: "All images are labelled.",
    reading_title: "The images are being read.", finished: "Next: train the classifier.",
    finished_skipped: "Skipped: {n}. Next: train the classifier.", reading_wait: "The first one appears in a moment.",
    ask_again: "Ask again",
    random: "Drawn at random for the test set: this answer measures the classifier and does not train it.",
    uncertain: "The classifier is unsure: {first}, {second}.", unlabelled: "Not labelled yet.",
    new: "Out of distribution: unlike everything labelled so far.",
    suspicious: "Its label is {label}. The classifier predicts another class. Which is right?",
    duplicates: "Nearly the same image has the label {label}.",
    duplicates_many: "Nearly the same images have the labels {label}.", present: "Its label is {label}.",
    group_hint: "Untick what does not fit. Then name the class.",
    grid_hint: "Untick what does not fit. Then choose the class of the others.", chosen: "Chosen: {n} of {total}",
    choose_all: "Choose all", choose_none: "Choose none", next_group: "None of these: next group", back: "Back",
    singly: "One by one", new_name: "Name of the class", label_it: "Label", filter: "Find a class", classes: "Classes",
    accept_all: "All {n}: {label}", new_class: "New class", similar: "Similar images", skip: "Skip",
    exclude: "Exclude", undo: "Undo", labelled_one: "{label}: {name}", excluded_one: "Excluded: {name}",
    skipped_one: "Skipped: {name}", labelled_many: "{label}: {n} images", excluded_many: "Excluded: {n} images",
    sending: "{text}, being sent", recorded: "{text}, recorded", undone: "Undone: {text}",
    nothing_to_undo: "There is nothing to undo.", none_chosen: "No image is chosen.",
    no_proposal: "There is no proposal yet: choose a class.", no_more_groups: "There are no groups now.",
    offline: "The server cannot be reached. Trying again …",
    offline_kept: "The server cannot be reached. Answers kept in this browser: {n}. They will be sent.",
    failing: "The server has an error: {reason}",
    failing_kept: "The server has an error: {reason}. Answers kept in this browser: {n}. They will be sent.",
    refused: "Not recorded: {text}.", dismiss: "Dismiss", undrawable: "This image cannot be shown.",
    image: "Image {name}", tile_label: "{name}, label {label}", percent: "{n}\u00a0%", side: "Progress",
    accuracy: "Accuracy on the test set", interval: "95\u00a0% interval {low} to {high}\u00a0%, on {n} test images",
    unknown_yet: "Not known yet", unknown_n: "Test images labelled: {n}.",
    gain: "With {n} more labels: about +{points} points.", no_gain: "Another {n} labels would hardly help.",
    sure: "Sure about {share} of the images.", sure_right: "Sure about {share} of the images, {right} of them right.",
    curve: "Accuracy by number of labels: {first} with {from}, {last} with {to}", curve_x: "{n} labels",
    images: "Images", labelled_share: "Share of the images that are labelled", labelled: "Labelled",
    unlabelled_n: "Unlabelled", excluded: "Excluded", skipped: "Skipped", suspicious_n: "Labels in doubt",
    reading: "Reading images: {done} of {total}", classes_n: "Classes ({n})", class_label: "{n} label",
    class_labels: "{n} labels",
    recall: "recall {share}", short: "needs more images", training: "Train the classifier",
    training_why: "Fine-tunes a network on all labels and writes a report.", budget: "Time", train: "Train",
    stop: "Stop", running: "Training for {time}.", done: "Trained. Accuracy on the test set: {share}.",
    done_plain: "Trained.", failed: "The training failed.", report: "Report: {path}",
    labels_file: "Labels: {path}, updated after each answer",
    decisions_file: "Excluded images and changed labels: {path}", keys_on: "Single keys answer", close: "Close",
    key_class: "label with this class", key_enter: "accept the proposal", key_n: "new class",
    key_g: "grid of similar images", key_space: "skip; in a grid: tick or untick", key_x: "exclude from the dataset",
    key_u: "undo the last answer", key_filter: "find a class by a part of its name",
    key_arrows: "move in a grid or a list", key_escape: "leave the grid or the field", minutes: "{n} min",
    space_key: "Space", arrow_keys: "Arrows",
  },
  zh: {
    other: "English", groups: "查看分组", keys: "快捷键", token: "访问令牌", submit: "继续", try_now: "立即重试",
    token_required: "此服务器需要访问令牌，它包含在命令输出的网址里。", token_wrong: "访问令牌不正确。", title: "这张图像属于哪个类别？", loading: "正在加载…",
    group_title: "这些图像看起来相似，属于哪个类别？", grid_title: "相似图像：哪些属于同一类别？", finished_title: "所有图像都已标注。", reading_title: "正在读取图像。",
    finished: "接下来可以训练分类器。", finished_skipped: "已跳过 {n} 张。接下来可以训练分类器。", reading_wait: "第一张很快就会出现。", ask_again: "再问一次",
    random: "为测试集随机抽取：这次标注只用于评估分类器，不参与训练。", uncertain: "分类器不确定：{first}，还是 {second}？", unlabelled: "尚未标注。",
    new: "与已标注的图像都不相似（分布外图像）。", suspicious: "现有标签为“{label}”，但分类器的预测不同，请确认。", duplicates: "几乎相同的图像已标注为“{label}”。",
    duplicates_many: "几乎相同的图像有不同的标签：{label}。", present: "现有标签：“{label}”。", group_hint: "点击不属于同一类别的图像，取消选择，再输入类别名称。",
    grid_hint: "点击不属于同一类别的图像，取消选择，再为其余图像选择类别。", chosen: "已选 {n} / {total} 张", choose_all: "全选", choose_none: "全不选",
    next_group: "跳过，看下一组", back: "返回", singly: "逐张标注", new_name: "类别名称", label_it: "标注", filter: "查找类别", classes: "类别",
    accept_all: "已选 {n} 张全部标注为“{label}”", new_class: "新建类别", similar: "相似图像", skip: "跳过", exclude: "排除", undo: "撤销",
    labelled_one: "{name} 标注为“{label}”", excluded_one: "排除 {name}", skipped_one: "跳过 {name}",
    labelled_many: "{n} 张图像标注为“{label}”", excluded_many: "排除 {n} 张图像", sending: "{text}，正在发送", recorded: "{text}，已保存",
    undone: "已撤销：{text}", nothing_to_undo: "没有可以撤销的操作。", none_chosen: "没有选择任何图像。", no_proposal: "还没有预测结果，请选择类别。",
    no_more_groups: "目前没有更多分组。", offline: "无法连接服务器，正在重试…", offline_kept: "无法连接服务器。{n} 条标注已暂存在浏览器中，恢复连接后自动发送。",
    failing: "服务器出错：{reason}", failing_kept: "服务器出错：{reason}。{n} 条标注已暂存在浏览器中，稍后自动发送。", refused: "未能保存：{text}。",
    dismiss: "关闭提示", undrawable: "无法显示这张图像。", image: "图像 {name}", tile_label: "{name}，标签“{label}”", percent: "{n}%",
    side: "进度", accuracy: "测试集准确率", interval: "95% 置信区间 {low}% 至 {high}%，基于 {n} 张测试图像", unknown_yet: "暂无结果",
    unknown_n: "测试集已标注 {n} 张图像。", gain: "再标注 {n} 张，准确率预计提高约 {points} 个百分点。", no_gain: "再标注 {n} 张，准确率几乎不会提高。",
    sure: "分类器有把握的图像占 {share}。", sure_right: "分类器有把握的图像占 {share}，其中 {right} 预测正确。",
    curve: "准确率随标注数量的变化：{from} 张时 {first}，{to} 张时 {last}", curve_x: "{n} 张", images: "图像", labelled_share: "已标注图像的比例",
    labelled: "已标注", unlabelled_n: "未标注", excluded: "已排除", skipped: "已跳过", suspicious_n: "存疑标签",
    reading: "正在读取图像：{done} / {total}", classes_n: "类别（{n}）", class_label: "{n} 张", class_labels: "{n} 张", recall: "召回率 {share}",
    short: "需要更多图像", training: "训练分类器", training_why: "用全部已标注的图像微调网络，并生成报告。", budget: "时间预算", train: "开始训练", stop: "停止",
    running: "正在训练，已用时 {time}。", done: "训练完成，测试集准确率 {share}。", done_plain: "训练完成。", failed: "训练失败。", report: "报告：{path}",
    labels_file: "标签文件：{path}，每次标注后立即更新", decisions_file: "排除的图像与更改的标签：{path}", keys_on: "启用单键快捷键", close: "关闭",
    key_class: "标注为对应类别", key_enter: "接受分类器的预测", key_n: "新建类别", key_g: "查看相似图像", key_space: "跳过；在网格中选择或取消选择图像",
    key_x: "从数据集中排除", key_u: "撤销上一次操作", key_filter: "按名称查找类别", key_arrows: "在网格或列表中移动", key_escape: "退出网格或输入框",
    minutes: "{n} 分钟", space_key: "空格", arrow_keys: "方向键",
  },
};

const byId = (id) => document.getElementById(id);
const queue = []; // questions to come
const outbox = []; // requests that the server has not acknowledged, in order: answers and undos
const answered = []; // what can be undone: each the answers, and what was on the page; the newest is last
const pictures = new Map(); // by id and size; the oldest is first
const loads = []; // pictures that wait for their turn
const groups = []; // groups to come
let language, state, current, grid, wake;
let [view, loading, failures, steps, locked] = ["single", 0, 0, 0, false];
let [isSending, isAsking, isOpening, isNaming, isDry, problem] = [false, false, false, false, false, null];
let token = storage("sessionStorage", "fieldmark-token");
let author = storage("sessionStorage", "fieldmark-author") ?? randomName();

/** Why a request failed: `key` says what kind, `reason` is the server's message, in English. */
const failure = (key, values = {}) => Object.assign(new Error(key), { key, ...values });

// ---- texts
const translate = (key, values = {}) => TEXTS[language][key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
const number = (n) => n.toLocaleString(LOCALES[language]);
const percent = (share) => translate("percent", { n: Math.round(100 * share) });
const otherLanguage = () => (language === "en" ? "zh" : "en");
const fileName = (path) => path.split("/").pop();

/** Not crypto.randomUUID, which a page of plain http lacks. */
function randomName() {
  return [...crypto.getRandomValues(new Uint8Array(12))].map((n) => n.toString(16).padStart(2, "0")).join("");
}

/** Read from the browser's storage, or write a value; where storage is forbidden, a value lasts as long as the page. */
function storage(store, key, value) {
  try {
    if (value === null) return window[store].removeItem(key);
    return value === undefined ? window[store].getItem(key) : window[store].setItem(key, value);
  } catch { return null; }
}

function createElement(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function setLanguage(to) {
  language = to;
  document.documentElement.lang = LOCALES[to];
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = translate(element.dataset.text);
  for (const element of document.querySelectorAll("[data-label]")) element.ariaLabel = translate(element.dataset.label);
  for (const option of byId("budget").options) option.textContent = translate("minutes", { n: parseInt(option.value) });
  Object.assign(byId("language"), { textContent: translate("other"), lang: LOCALES[otherLanguage()] });
  byId("token-message").textContent = translate(token ? "token_wrong" : "token_required");
  for (const id of ["announcements", "errors", "last-text"]) byId(id).replaceChildren();
  showKeys();
  showNotice();
  render();
}

/** For screen readers. Only the last lines stay. */
function announce(textContent) {
  byId("announcements").append(createElement("p", { textContent }));
  while (byId("announcements").children.length > 4) byId("announcements").firstChild.remove();
}

/** Below the answers and for screen readers: what became of the last one. */
function tell(text) {
  byId("last-text").textContent = text;
  announce(text);
}

// ---- the server
const read = (response) => response.json().catch(() => ({ error: `HTTP ${response.status}` }));
const isTemporary = ({ key, status }) => key === "unreachable" || status === 429 || status >= 500;
const pause = (ms) => new Promise((done) => { wake = done; setTimeout(done, ms); });

/** The response. Raises a `failure`: "unreachable", "locked" (401) or "refused" with `status` and `reason`. */
async function request(path, options = {}) {
  const usedToken = token;
  const headers = { ...options.headers, ...(usedToken && { Authorization: `Bearer ${usedToken}` }) };
  const response = await fetch(path, { ...options, headers, signal: AbortSignal.timeout(TIMEOUT) })
    .catch(() => { throw failure("unreachable"); });
  if (response.ok) return response;
  if (response.status === 401) requireToken(usedToken);
  const key = response.status === 401 ? "locked" : "refused";
  throw failure(key, { status: response.status, reason: String((await read(response)).error) });
}

const get = (path) => request(path).then(read);
const JSON_TYPE = { "Content-Type": "application/json" };
const post = (path, body) =>
  request(path, { method: "POST", body: JSON.stringify(body), headers: JSON_TYPE }).then(read);

/** Send nothing until the person enters a token; a request that was refused with an older one is simply repeated. */
function requireToken(usedToken) {
  if (usedToken !== token || locked) return;
  [locked, byId("token-form").hidden] = [true, false];
  byId("token-message").textContent = translate(token ? "token_wrong" : "token_required");
  byId("token").focus();
}

/** The address holds the token behind its #, which browsers do not send; it leaves the address bar and the history. */
function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!given) return;
  token = given;
  storage("sessionStorage", "fieldmark-token", token);
  history.replaceState(null, "", location.pathname + location.search);
}

/** Read the state again and again: often while something is in progress. */
async function poll() {
  try {
    await readState();
  } catch (error) {
    if (!error.key) throw error;
    if (!outbox.length && error.key !== "locked") setProblem(error);
  } finally {
    clearTimeout(poll.timer);
    const isBusy = !state || problem || isReading() || state.training.state === "running";
    if (!locked) poll.timer = setTimeout(poll, isBusy ? FAST : SLOW);
  }
}

async function readState() {
  const isFirst = !state;
  takeState(await get("state"));
  if (!outbox.length) setProblem(null);
  isDry = false;
  if (isFirst) await start();
  else await adoptAnswers();
  if (outbox.length) send();
  ask();
}

const isReading = () => state.reading.done < state.reading.total;

function takeState(newState) {
  state = newState;
  state.classes = withNewClasses(state.classes);
  const chosen = storage("localStorage", "fieldmark-language");
  const wanted = chosen in TEXTS ? chosen : state.lang;
  [locked, byId("token-form").hidden, byId("side").hidden] = [false, true, false];
  if (wanted in TEXTS && wanted !== language) setLanguage(wanted);
  else renderState();
}

async function start() {
  await takeName();
  restoreAnswers();
  await adoptAnswers();
  await (isBeginning() ? openGroups() : showNext());
}

/** With fewer than two classes there is no classifier: groups of similar images are labelled instead. */
function isBeginning() {
  const labelled = state.metrics.classes.filter((one) => one.labelled).map(({ name }) => name);
  return new Set([...labelled, ...unsentLabels()]).size < 2;
}

// ---- answers: kept until the server has them
const NOUNS = { label: "labelled", exclude: "excluded", skip: "skipped" };
const unsent = () => outbox.flatMap(({ answers }) => answers ?? []);
const unsentLabels = () => unsent().filter(({ action }) => action === "label").map(({ label }) => label);
const storageKey = (name) => `fieldmark-teach ${name} ${state.folder}`;

/** Classes of answers that are still to be sent are not known to the server yet. */
const withNewClasses = (classes) => [...new Set([...classes, ...unsentLabels()])];

/** Other tabs have other names, so that undo takes back this tab's answers; a copied tab starts with the same one. */
async function takeName() {
  if (!(await hold(author, true))) {
    author = randomName();
    await hold(author, true);
  }
  storage("sessionStorage", "fieldmark-author", author);
}

/** Whether no other tab has this name; it can be kept until the page is left. Plain http has no locks. */
function hold(name, keep = false) {
  if (!navigator.locks) return true;
  const forever = new Promise(() => {});
  return new Promise((done) => {
    navigator.locks.request(`fieldmark-teach ${name}`, { ifAvailable: true }, (lock) => {
      done(Boolean(lock));
      return lock && keep ? forever : undefined;
    });
  });
}

function save() {
  storage("localStorage", storageKey(author), outbox.length ? JSON.stringify(outbox) : null);
}

/** The requests that are kept there; what cannot be read is nothing of this page. */
function stored(key) {
  try { return JSON.parse(storage("localStorage", key)) ?? []; } catch { return []; }
}

function restoreAnswers() {
  outbox.push(...stored(storageKey(author)));
  answered.push(...outbox.filter(({ answers }) => answers).map((sent) => ({ sent, step: 0, question: sent.question })));
  state.classes = withNewClasses(state.classes);
}

/** Send what a tab that was closed could not send any more. */
async function adoptAnswers() {
  const [start, end] = storageKey("\n").split("\n");
  let keys = [];
  try { keys = Object.keys(localStorage); } catch { /* storage is forbidden */ }
  for (const key of keys.filter((one) => one.startsWith(start) && one.endsWith(end) && one !== storageKey(author))) {
    if (!(await hold(key.slice(start.length, -end.length)))) continue;
    outbox.push(...stored(key));
    save();
    storage("localStorage", key, null);
    const wasShown = Boolean(current);
    drop(new Set(unsent().map(({ id }) => id)));
    if (wasShown && !current && view === "single") showNext();
  }
}

/** Keep the answers and send them in the background; `before` is what undo brings back. */
function record(answers, path, before) {
  const sent = { key: randomName(), author, answers, path, question: before.question };
  outbox.push(sent);
  answered.push({ sent, step: ++steps, ...before });
  if (answered.length > MAX_UNDO) answered.shift();
  state.classes = withNewClasses(state.classes);
  byId("last-text").textContent = translate("sending", { text: describe(sent) });
  save();
  send();
}

function describe({ answers: [{ action, label }, ...others], path }) {
  const name = `${NOUNS[action]}_${others.length ? "many" : "one"}`;
  return translate(name, { label, name: fileName(path), n: others.length + 1 });
}

async function send() {
  if (isSending) return;
  isSending = true;
  try {
    while (outbox.length && !locked) await sendFirst();
  } finally { isSending = false; }
  ask();
}

/** One request holds the answers of one step, since undo takes back a request. A repeated one has the same key. */
async function sendFirst() {
  const [first] = outbox;
  const { key, author: by, answers } = first;
  first.isTried = true;
  save();
  try {
    const [askedAt, after] = [steps, [...heldIds()]];
    const more = answers && { answers, next: wanted(), after };
    const reply = await post(answers ? "answers" : "undo", { author: by, key, ...more });
    outbox.shift();
    save();
    failures = 0;
    setProblem(null);
    acknowledge(first, reply, askedAt);
  } catch (error) {
    if (!error.key) throw error;
    if (error.key === "locked") return;
    if (!isTemporary(error)) return refuse(first, error);
    setProblem(error);
    await pause(WAITS[Math.min(failures++, WAITS.length - 1)]);
  }
}

function acknowledge(sent, { metrics, classes, questions, undone }, askedAt) {
  Object.assign(state, { metrics, classes: withNewClasses(classes) });
  if (sent.answers) {
    const text = translate("recorded", { text: describe(sent) });
    if (answered.at(-1)?.sent === sent) byId("last-text").textContent = text;
    announce(text);
    take(questions, askedAt);
  } else if (!sent.isShown) {
    if (undone && questions.length) bringBack({ question: questions[0] });
    tell(undone ? translate("undone", { text: fileName(questions[0]?.path ?? "") }) : translate("nothing_to_undo"));
  }
  renderState();
}

/** The server will never take this answer: say so, and go on with the others. */
function refuse(sent, { reason }) {
  outbox.splice(0, Infinity, ...outbox.filter((one) => one !== sent && one.of !== sent.key));
  answered.splice(0, Infinity, ...answered.filter((one) => one.sent !== sent));
  save();
  showError(sent.answers ? translate("refused", { text: describe(sent) }) : "", reason);
}

/** Messages of the server are in English, whatever the language of the page. */
function showError(text, reason) {
  const line = createElement("p", { className: "notice" });
  line.append(createElement("span", {}, text, " ", createElement("span", { lang: "en" }, reason)));
  const button = createElement("button", { type: "button", className: "quiet", ariaLabel: translate("dismiss") }, "×");
  button.onclick = () => line.remove();
  line.append(button);
  byId("errors").append(line);
  while (byId("errors").children.length > MAX_ERRORS) byId("errors").firstChild.remove();
}

function setProblem(error) {
  problem = error;
  showNotice();
}

function showNotice() {
  const name = `${problem?.key === "unreachable" ? "offline" : "failing"}${outbox.length ? "_kept" : ""}`;
  byId("notice").hidden = !problem;
  if (problem) byId("notice-text").textContent = translate(name, { n: outbox.length, reason: problem.reason });
}

/** Take back the last step: at once where its answers were not sent yet, else by a request behind them. */
function undo() {
  const entry = answered.pop();
  const last = outbox.at(-1);
  if (entry && last === entry.sent && !last.isTried) outbox.pop();
  else outbox.push({ key: randomName(), author, isShown: Boolean(entry), of: entry?.sent.key });
  save();
  if (entry) {
    bringBack(entry);
    tell(translate("undone", { text: describe(entry.sent) }));
  }
  send();
}

/** Show again what an answer was given to. */
function bringBack({ question, grid: group }) {
  if (view === "groups") groups.unshift(grid.images);
  if (group?.kind === "groups") return showGrid(group);
  if (current && current.id !== question.id) queue.unshift(current);
  drop(new Set([question.id]));
  show(question);
}

// ---- questions
const heldIds = () => new Set([...(current ? [current] : []), ...queue, ...unsent()].map(({ id }) => id));
const wanted = () => (view === "groups" ? 0 : Math.max(0, AHEAD + (current ? 0 : 1) - queue.length));

/** Ask for more questions, unless an answer is on its way: its response brings them. */
async function ask() {
  const [n, after] = [wanted(), [...heldIds()].join()];
  if (!state || isAsking || isSending || locked || !n || (isDry && current)) return;
  isAsking = true;
  try {
    const askedAt = steps;
    const { questions } = await get(`next?n=${n}&author=${author}${after && `&after=${after}`}`);
    isDry = questions.length < n;
    take(questions, askedAt);
    renderScreen();
  } catch (error) { handle(error); } finally { isAsking = false; }
}

/** Of a request that the page repeats by itself, or that the person can repeat. */
function handle(error) {
  if (!error.key) throw error;
  if (isTemporary(error)) setProblem(error);
  else if (error.key !== "locked") showError("", error.reason);
}

/** Hold these questions, but not one that was answered since they were asked for, at that step. */
function take(questions, askedAt) {
  const known = heldIds();
  for (const { sent: { answers }, step } of answered) {
    if (step > askedAt) answers.forEach(({ id }) => known.add(id));
  }
  queue.push(...questions.filter(({ id }) => !known.has(id)));
  for (const { id, others } of queue) {
    picture(id, LARGE);
    others.forEach((other) => picture(other.id, SMALL));
  }
  if (view === "single" && !current && queue.length) showNext();
}

function drop(ids) {
  queue.splice(0, Infinity, ...queue.filter(({ id }) => !ids.has(id)));
  if (current && ids.has(current.id)) current = null;
}

function showNext() {
  show(queue.shift() ?? null);
  ask();
}

function show(question) {
  [current, view, grid, isNaming] = [question, "single", null, false];
  renderScreen();
  if (current) announce(byId("reason").textContent);
}

/** The person has not seen an image that is still loading: a key pressed too early must not label it. */
const isSeen = () => Boolean(current) && picture(current.id, LARGE).state !== "waiting";

/** Answer what is on the page; whether that was possible. */
function answer(action, label) {
  if (grid) return answerGrid(action, label);
  if (!isSeen() || isOpening) return false;
  const question = current;
  current = null;
  record([answerTo(question, action, label)], question.path, { question });
  showNext();
  return true;
}

/** With the path: if the server is started again and has more images then, others have these numbers. */
const answerTo = ({ id, path }, action, label) =>
  ({ id, path: wellFormed(path), action, ...(action === "label" && { label }) });

/** Bytes of a name that are no UTF-8 come as lone surrogates, which no JSON of a request may hold. */
const wellFormed = (text) => text.replace(/\p{Surrogate}/gu, "?");

function accept() {
  const proposal = (grid ? grid.question : current)?.proposal;
  if (grid?.kind === "groups") byId("new-name").focus();
  else if (proposal == null) tell(translate("no_proposal"));
  else answer("label", proposal);
}

// ---- images in a grid: similar ones, or a group
/** Until the grid is there, no key answers: it would label one image instead of all. */
async function openGrid() {
  const question = current;
  if (view !== "single" || !isSeen() || isOpening) return;
  isOpening = true;
  try {
    const { images } = await get(`similar?id=${question.id}&n=${MAX_TILES}`);
    const held = new Set([question, ...unsent()].map(({ id }) => id));
    const others = images.filter(({ id }) => !held.has(id));
    if (current !== question || view !== "single") return; // undone in the meantime
    showGrid({ kind: "grid", images: [question, ...others].slice(0, MAX_TILES), off: new Set(), question });
    tiles()[0].focus();
  } catch (error) { handle(error); } finally { isOpening = false; }
}

async function openGroups() {
  try {
    if (!groups.length) groups.push(...(await get("groups?n=12")).groups.map(({ images }) => images));
  } catch (error) { handle(error); }
  const done = new Set(answered.flatMap(({ sent }) => sent.answers).map(({ id }) => id));
  while (groups.length) {
    const images = groups.shift().filter(({ id }) => !done.has(id)).slice(0, MAX_TILES);
    if (images.length) return showGrid({ kind: "groups", images, off: new Set() });
  }
  if (!isBeginning()) tell(translate("no_more_groups"));
  current ? show(current) : showNext();
}

/** The tiles stay while they are ticked and unticked, so that the focus is not lost. */
function showGrid(shown) {
  [grid, view, isNaming] = [shown, shown.kind, false];
  byId("new-name").value = "";
  byId("tiles").replaceChildren(...grid.images.map(tile));
  renderScreen();
  announce(`${byId("question").textContent} ${byId("reason").textContent}`);
  if (view === "groups" && matchMedia("(any-hover:hover)").matches) byId("new-name").focus();
}

function tile(image, index) {
  const properties = { type: "button", className: "tile", tabIndex: index ? -1 : 0, ariaLabel: fileName(image.path) };
  const button = createElement("button", properties, picture(image.id, SMALL).element);
  button.onclick = () => {
    grid.off.has(image.id) ? grid.off.delete(image.id) : grid.off.add(image.id);
    renderChosen();
  };
  button.onfocus = () => tiles().forEach((one) => { one.tabIndex = one === button ? 0 : -1; });
  return createElement("li", {}, button);
}

const tiles = () => [...byId("tiles").querySelectorAll("button")];
const chosen = () => grid.images.filter(({ id }) => !grid.off.has(id));

function toggleAll() {
  const isAll = !grid.off.size;
  grid.off = new Set(isAll ? grid.images.map(({ id }) => id) : []);
  renderChosen();
}

function answerGrid(action, label) {
  const images = chosen();
  if (action === "skip") return false;
  if (!images.length) return tell(translate("none_chosen")) ?? false;
  const [answers, isFirst, { kind }] = [images.map((image) => answerTo(image, action, label)), isBeginning(), grid];
  const before = { question: grid.question ?? current, grid };
  drop(new Set(images.map(({ id }) => id)));
  record(answers, images[0].path, before);
  if (kind === "groups" && (!isFirst || isBeginning())) openGroups();
  else leaveGrid();
  return true;
}

function leaveGrid() {
  document.activeElement.blur();
  current ? show(current) : showNext();
}

/** Move the focus in the grid as it is laid out. */
function moveInGrid(key) {
  const buttons = tiles();
  const columns = buttons.filter(({ offsetTop }) => offsetTop === buttons[0].offsetTop).length;
  const moves = { arrowleft: -1, arrowright: 1, arrowup: -columns, arrowdown: columns };
  const from = buttons.indexOf(document.activeElement);
  (from < 0 ? buttons[0] : buttons[from + moves[key]])?.focus();
}

// ---- pictures: loaded before they are shown
const scale = (length) => 400 * Math.ceil((length * devicePixelRatio) / 400);
const LARGE = Math.min(1600, scale(Math.min(innerWidth, 800)));
const SMALL = Math.min(800, scale(200));

/** The element of an image in this size, and whether it is "waiting", "ready" or "broken". */
function picture(id, size) {
  const key = `${id} ${size}`;
  const create = () => ({ id, size, state: "waiting", element: createElement("img", { alt: "", draggable: false }) });
  const entry = pictures.get(key) ?? create();
  const isNew = !pictures.delete(key);
  pictures.set(key, entry);
  if (!isNew) return entry;
  loads.push(entry);
  loadNext();
  if (pictures.size > MAX_PICTURES) forget(pictures.entries().next().value);
  return entry;
}

function forget([key, { element }]) {
  pictures.delete(key);
  URL.revokeObjectURL(element.src);
}

function loadNext() {
  while (!locked && loading < MAX_LOADS && loads.length) {
    const entry = loads.find(({ size }) => size === LARGE) ?? loads[0];
    loads.splice(loads.indexOf(entry), 1);
    loading += 1;
    load(entry).finally(() => { loading -= 1; loadNext(); });
  }
}

async function load(entry) {
  try {
    const blob = await (await request(`image?id=${entry.id}&size=${entry.size}`)).blob();
    entry.element.src = URL.createObjectURL(blob);
    await entry.element.decode();
    entry.state = "ready";
  } catch (error) {
    if (error.key === "locked" || isTemporary(error)) {
      setTimeout(() => { loads.push(entry); loadNext(); }, FAST);
      return;
    }
    entry.state = "broken";
  }
  if (current?.id === entry.id) renderPicture();
}

// ---- what is on the page
/** What teach.css shows: the view, or why there is no question. */
function screen() {
  if (!state) return "start";
  if (view !== "single" || current) return view;
  if (!isDry || outbox.length) return "loading";
  return isReading() ? "reading" : "finished";
}

function render() {
  renderState();
  renderScreen();
}

function renderScreen() {
  const name = screen();
  const isNew = document.body.dataset.view !== name;
  document.body.dataset.view = name;
  byId("question").textContent = translate(TITLES[name]);
  if (isNew && (name === "finished" || name === "reading")) announce(translate(TITLES[name]));
  byId("reason").textContent = reason(name);
  const others = (name === "single" && current.others) || [];
  byId("others").replaceChildren(...others.map(labelledTile));
  byId("naming").hidden = name !== "groups" && !isNaming;
  byId("to-groups").hidden = !state || name === "groups";
  renderPicture();
  renderChosen();
}

function reason(name) {
  if (name === "groups" || name === "grid") return translate(name === "grid" ? "grid_hint" : "group_hint");
  const { skipped } = state?.metrics ?? {};
  if (name === "finished") return translate(skipped ? "finished_skipped" : "finished", { n: skipped });
  if (name === "reading") return translate("reading_wait");
  if (name === "loading" || name === "start") return "";
  const { reason: why, label, top, others } = current;
  const [first, second] = top.map(([one, share]) => `${one} ${percent(share)}`);
  if (why === "uncertain" && !second) return translate("unlabelled");
  const labels = new Set(others.map((other) => other.label));
  const list = new Intl.ListFormat(LOCALES[language]).format(labels);
  const key = why === "duplicates" && labels.size > 1 ? "duplicates_many" : why;
  const values = { first, second, label: why === "duplicates" ? list : label };
  const text = translate(REASONS.includes(key) ? key : "unlabelled", values);
  return label == null || why === "suspicious" ? text : `${text} ${translate("present", { label })}`;
}

function labelledTile({ id, path, label }) {
  const { element } = picture(id, SMALL);
  element.alt = translate("tile_label", { name: fileName(path), label });
  return createElement("li", {}, element, createElement("span", { dir: "auto", ariaHidden: "true" }, label));
}

function renderPicture() {
  const name = screen();
  const text = (key) => byId("frame").replaceChildren(createElement("p", {}, translate(key)));
  byId("path").textContent = current?.path ?? "";
  if (name !== "single") return text("loading");
  const { state: how, element } = picture(current.id, LARGE);
  element.alt = translate("image", { name: fileName(current.path) });
  if (how === "ready") byId("frame").replaceChildren(element);
  else text(how === "broken" ? "undrawable" : "loading");
}

/** What depends on the images that are chosen and on the proposal. */
function renderChosen() {
  const { proposal, confidence, top = [] } = (grid ? grid.question : current) ?? {};
  const [, label, share] = byId("accept").children;
  byId("accept").hidden = proposal == null || !["single", "grid"].includes(screen());
  label.textContent = grid ? translate("accept_all", { n: chosen().length, label: proposal }) : proposal ?? "";
  share.textContent = grid || confidence == null ? "" : percent(confidence);
  const shares = new Map(top);
  for (const button of byId("classes").children) {
    const { name } = button;
    button.classList.toggle("proposed", name === proposal);
    button.lastChild.textContent = !grid && shares.has(name) ? percent(shares.get(name)) : "";
  }
  if (!grid) return;
  tiles().forEach((button, index) => { button.ariaPressed = String(!grid.off.has(grid.images[index].id)); });
  byId("chosen").textContent = translate("chosen", { n: chosen().length, total: grid.images.length });
  byId("back").lastChild.textContent = translate(view === "groups" ? "singly" : "back");
  byId("toggle-all").textContent = translate(grid.off.size ? "choose_all" : "choose_none");
}

/** The buttons stay while nothing changes, so that the focus is not lost. */
function renderClasses() {
  const names = [...byId("classes").children].map(({ name }) => name);
  if (names.join("\n") === state.classes.join("\n")) return;
  byId("classes").replaceChildren(...state.classes.map(classButton));
  byId("known").replaceChildren(...state.classes.map((value) => createElement("option", { value })));
  const [isMany, isSome] = [state.classes.length > CLASS_KEYS.length, state.classes.length > FEW_CLASSES];
  document.body.classList.toggle("many-classes", isMany);
  document.body.classList.toggle("some-classes", isSome && !isMany);
  renderChosen();
}

function classButton(name, index) {
  const key = CLASS_KEYS[index];
  const mark = createElement("kbd", { ariaHidden: "true", hidden: !key }, key?.toUpperCase() ?? "");
  const button = createElement("button", { type: "button", className: "quiet class", name }, mark);
  button.append(createElement("span", { dir: "auto" }, name), createElement("span", { className: "share" }));
  if (key) button.setAttribute("aria-keyshortcuts", key);
  button.onclick = () => answer("label", name);
  return button;
}

// ---- the side: what the classifier has learned, and the training
function renderState() {
  if (!state) return;
  const { metrics, name, reading, labels_file: labelsFile, decisions_file: decisionsFile } = state;
  byId("name").textContent = name;
  document.title = `${name} · Fieldmark`;
  renderClasses();
  renderAccuracy(metrics);
  renderCounts(metrics);
  const [done, total] = [reading.done, reading.total].map(number);
  byId("reading").textContent = isReading() ? translate("reading", { done, total }) : "";
  byId("classes-title").parentElement.hidden = !metrics.classes.length;
  byId("classes-title").textContent = translate("classes_n", { n: number(metrics.classes.length) });
  byId("class-table").replaceChildren(...metrics.classes.map(classRow));
  renderTraining();
  byId("labels-file").textContent = translate("labels_file", { path: labelsFile });
  byId("decisions-file").textContent = decisionsFile ? translate("decisions_file", { path: decisionsFile }) : "";
}

function renderAccuracy(metrics) {
  const { accuracy: { share, low, high, n }, expected_gain: gain, next_labels: more } = metrics;
  const isKnown = share !== null && n >= MIN_TEST_IMAGES;
  const values = { low: Math.round(100 * low), high: Math.round(100 * high), n: number(n) };
  byId("accuracy").textContent = isKnown ? percent(share) : translate("unknown_yet");
  byId("accuracy").classList.toggle("unknown", !isKnown);
  byId("interval").textContent = translate(isKnown ? "interval" : "unknown_n", values);
  const key = gain >= SMALL_GAIN ? "gain" : "no_gain";
  const text = () => translate(key, { n: more, points: (100 * gain).toFixed(1) });
  byId("gain").textContent = isKnown && gain !== null ? text() : "";
  byId("coverage").textContent = isKnown ? coverageText(metrics) : "";
  drawCurve(isKnown ? metrics.history : []);
}

function coverageText({ coverage, selective_accuracy: { share, n } }) {
  if (coverage === null) return "";
  if (share === null || n < MIN_TEST_IMAGES) return translate("sure", { share: percent(coverage) });
  return translate("sure_right", { share: percent(coverage), right: percent(share) });
}

/** Accuracy over labels. The interval is a band where the server gives one. */
function drawCurve(history) {
  const points = history.map(toPoint).filter(({ share }) => share !== null);
  byId("curve").toggleAttribute("hidden", points.length < 2);
  if (points.length < 2) return;
  const [first, last] = [points[0], points.at(-1)];
  const bottom = Math.max(0, Math.floor(10 * Math.min(...points.map(({ low }) => low))) / 10);
  const x = (labelled) => 46 + (244 * (labelled - first.labelled)) / (last.labelled - first.labelled || 1);
  const y = (share) => 98 - (88 * (share - bottom)) / (1 - bottom || 1);
  const line = (name) => points.map((point) => `${x(point.labelled).toFixed(1)},${y(point[name]).toFixed(1)}`);
  const labels = ({ labelled }) => translate("curve_x", { n: number(labelled) });
  byId("curve").replaceChildren(
    ...[bottom, 1].map((share) => draw("path", { class: "grid", d: `M46 ${y(share)}H290` })),
    ...[bottom, 1].map((share) => write(40, y(share) + 4, "end", percent(share))),
    write(46, 116, "start", labels(first)), write(290, 116, "end", labels(last)),
    draw("polygon", { class: "band", points: [...line("low"), ...line("high").reverse()].join(" ") }),
    draw("polyline", { class: "line", points: line("share").join(" ") }),
    draw("circle", { class: "point", cx: x(last.labelled), cy: y(last.share), r: 3.5 }),
  );
  const values = { first: percent(first.share), from: first.labelled, last: percent(last.share), to: last.labelled };
  byId("curve").setAttribute("aria-label", translate("curve", values));
}

/** The accuracy is a share or an estimate. */
function toPoint({ labelled, accuracy }) {
  const { share, low, high } = accuracy?.share === undefined ? { share: accuracy } : accuracy;
  return { labelled, share, low: low ?? share, high: high ?? share };
}

function draw(tag, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}

const write = (x, y, anchor, text) => draw("text", { x, y, "text-anchor": anchor }, text);

function renderCounts({ labelled, unlabelled, excluded, skipped, suspicious }) {
  const counts = { labelled, unlabelled_n: unlabelled, excluded, skipped, suspicious_n: suspicious };
  const shown = Object.entries(counts).filter(([key, n]) => n || key === "labelled" || key === "unlabelled_n");
  byId("counts").replaceChildren(...shown.flatMap(([key, n]) => pair(translate(key), number(n))));
  byId("labelled-share").value = labelled / (labelled + unlabelled || 1);
}

const pair = (term, value) => [createElement("dt", {}, term), createElement("dd", {}, value)];

function classRow({ name, labelled, recall, is_short: isShort }) {
  const row = createElement("li", {}, createElement("span", { dir: "auto", className: "class-name" }, name));
  const key = labelled === 1 ? "class_label" : "class_labels";
  row.append(createElement("span", { className: "share" }, translate(key, { n: number(labelled) })));
  if (recall.share !== null && recall.n >= MIN_CLASS_TESTS) {
    const value = createElement("i");
    value.style.width = `${100 * recall.share}%`;
    row.append(createElement("span", { className: "track" }, value));
    const share = translate("recall", { share: percent(recall.share) });
    row.append(createElement("span", { className: "share" }, share));
  }
  if (isShort) row.append(createElement("span", { className: "short" }, translate("short")));
  return row;
}

function renderTraining() {
  const { state: how, line, seconds, report, accuracy } = state.training;
  const isRunning = how === "running";
  byId("training").hidden = how === "none" && isBeginning();
  const time = `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
  const key = how === "done" && accuracy === null ? "done_plain" : how;
  byId("train").dataset.state = how;
  byId("train").querySelector("[type=submit]").disabled = isRunning;
  byId("budget").disabled = isRunning;
  byId("stop").hidden = !isRunning;
  const share = accuracy === null ? "" : percent(accuracy);
  byId("train-result").textContent = how === "none" ? "" : translate(key, { time, share });
  byId("train-line").textContent = isRunning || how === "failed" ? line : "";
  byId("train-report").textContent = report ? translate("report", { path: report }) : "";
}

async function train(path, body) {
  try {
    state.training = await post(path, body);
    renderTraining();
    poll();
  } catch (error) { handle(error); }
}

// ---- keys and fields
const keysOn = () => byId("keys-on").checked;
const isTyping = (element) => element.matches("input:not([type=checkbox]), select, textarea");
const COMMANDS = {
  n: openNaming, "/": openFinder, g: openGrid, u: undo,
  x: () => answer("exclude"), " ": () => answer("skip"), "?": () => byId("help").showModal(),
};

/** A layout of the keyboard without Latin letters has them at the usual places. */
const isForeign = ({ key, code }) => /^[^\x20-\x7e]$/.test(key) && code.startsWith("Key");
const keyOf = (event) => (isForeign(event) ? event.code.slice(3) : event.key).toLowerCase();

function onKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing || byId("help").open || !state) return;
  const { target } = event;
  const [key, isTile] = [keyOf(event), Boolean(target.closest(".tile"))];
  if (key === "escape") return onEscape();
  if (isTyping(target)) return;
  const isControl = isTile ? key === " " : target.closest("button, input");
  if (isControl && (key === " " || key === "enter")) return; // the browser presses it
  const act = actionOf(key);
  if (!act) return;
  event.preventDefault();
  if (!event.repeat || key.startsWith("arrow")) act();
}

/** What a key does now: undefined if nothing. */
function actionOf(key) {
  if (key.startsWith("arrow")) return grid ? () => moveInGrid(key) : undefined;
  if (key === "enter") return accept;
  if (!keysOn()) return undefined;
  const label = state.classes[CLASS_KEYS.indexOf(key)];
  return COMMANDS[key] ?? (label === undefined ? undefined : () => answer("label", label));
}

function onEscape() {
  const field = document.activeElement;
  if (isTyping(field)) closeField(field);
  else if (grid) leaveGrid();
}

function openNaming() {
  isNaming = true;
  renderScreen();
  byId("new-name").focus();
}

function openFinder() {
  byId("finder").hidden = false;
  byId("filter").focus();
}

function closeField(field) {
  field.value = "";
  field.blur();
  byId("finder").hidden = true;
  isNaming = false;
  renderScreen();
}

/** A name that differs from a class only in its capitals is that class. */
function nameClass(event) {
  event.preventDefault();
  const name = byId("new-name").value.trim();
  const same = state.classes.find((one) => one.toLowerCase() === name.toLowerCase());
  if (name && answer("label", same ?? name) && view !== "groups") closeField(byId("new-name"));
}

/** List the classes with this part in their names, those first that begin with it. */
function showFound() {
  const text = byId("filter").value.trim().toLowerCase();
  const isOpen = document.activeElement === byId("filter");
  const found = !isOpen || !state ? [] : state.classes.filter((name) => name.toLowerCase().includes(text));
  found.sort((a, b) => b.toLowerCase().startsWith(text) - a.toLowerCase().startsWith(text));
  byId("found").replaceChildren(...found.slice(0, MAX_FOUND).map(foundOption));
  byId("found").hidden = !found.length;
  byId("filter").ariaExpanded = String(found.length > 0);
  selectFound(0);
}

function foundOption(name, index) {
  const option = createElement("li", { id: `found-${index}`, role: "option", dir: "auto" }, name);
  option.onpointerdown = (event) => event.preventDefault(); // the field keeps the focus
  option.onclick = () => chooseFound(option);
  return option;
}

function selectFound(index) {
  const options = [...byId("found").children];
  const at = Math.max(0, Math.min(index, options.length - 1));
  for (const [n, option] of options.entries()) option.ariaSelected = String(n === at);
  if (options.length) byId("filter").setAttribute("aria-activedescendant", options[at].id);
  else byId("filter").removeAttribute("aria-activedescendant");
  options[at]?.scrollIntoView({ block: "nearest" });
}

const chooseFound = (option) => { if (option && answer("label", option.textContent)) closeField(byId("filter")); };

function onFilterKey(event) {
  const selected = byId("found").querySelector("[aria-selected=true]");
  const at = [...byId("found").children].indexOf(selected);
  const [down, up] = [() => selectFound(at + 1), () => selectFound(at - 1)];
  const act = { ArrowDown: down, ArrowUp: up, Enter: () => chooseFound(selected) }[event.key];
  if (!act || event.isComposing) return;
  event.preventDefault();
  act();
}

function showKeys() {
  const cap = (key) => createElement("kbd", {}, key in TEXTS.en ? translate(key) : key);
  byId("key-list").replaceChildren(...KEY_LIST.flatMap(([key, name]) => pair(cap(key), translate(`key_${name}`))));
}

function onKeysChanged() {
  storage("localStorage", "fieldmark-keys", keysOn() ? "on" : "off");
  document.body.classList.toggle("no-keys", !keysOn());
}

// ---- events
addEventListener("keydown", onKey);
addEventListener("online", () => { wake?.(); poll(); });
addEventListener("beforeunload", (event) => { if (outbox.length) event.preventDefault(); });
// A button that was clicked does not keep the focus: the space key would click it again.
addEventListener("click", (event) => { if (event.detail) event.target.closest("button:not(.tile)")?.blur(); });
for (const button of document.querySelectorAll("[data-key]")) button.onclick = () => COMMANDS[button.dataset.key]();
byId("accept").onclick = accept;
byId("naming").onsubmit = nameClass;
for (const kind of ["onfocus", "oninput", "onblur"]) byId("filter")[kind] = showFound;
byId("filter").onkeydown = onFilterKey;
byId("toggle-all").onclick = toggleAll;
byId("next-group").onclick = openGroups;
byId("to-groups").onclick = openGroups;
byId("back").onclick = leaveGrid;
byId("ask-again").onclick = () => { isDry = false; ask(); };
byId("try-now").onclick = () => { wake?.(); poll(); };
byId("to-help").onclick = COMMANDS["?"];
byId("close-help").onclick = () => byId("help").close();
byId("keys-on").onchange = onKeysChanged;
byId("train").onsubmit = (event) => { event.preventDefault(); train("train", { budget: byId("budget").value }); };
byId("stop").onclick = () => train("train/stop", {});
byId("language").onclick = () => {
  setLanguage(otherLanguage());
  storage("localStorage", "fieldmark-language", language);
};
byId("token-form").onsubmit = (event) => {
  event.preventDefault();
  [token, locked] = [byId("token").value, false];
  storage("sessionStorage", "fieldmark-token", token);
  loadNext();
  poll();
};

takeToken();
byId("keys-on").checked = storage("localStorage", "fieldmark-keys") !== "off";
onKeysChanged();
const storedLanguage = storage("localStorage", "fieldmark-language");
setLanguage(storedLanguage in TEXTS ? storedLanguage : navigator.language.startsWith("zh") ? "zh" : "en");
poll();
