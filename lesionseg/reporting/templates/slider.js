const sweep = JSON.parse(document.getElementById("sweep").textContent);
const at = id => document.getElementById(id), input = at("threshold");
const scores = sweep.lesions.map(lesion => lesion[0]).filter(score => score !== null);
const levels = [...new Set([...scores, ...sweep.false, sweep.start])].sort((a, b) => b - a);
const short = value => Number(value.toPrecision(3));

function show() {
  const threshold = levels[input.value];
  const hit = lesion => lesion[0] !== null && lesion[0] >= threshold;
  const found = sweep.lesions.filter(hit).length, falsePositives = sweep.false.filter(score => score >= threshold).length;
  const rate = short(falsePositives / sweep.cases);
  const withNoun = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
  at("rating").textContent = scoreText(threshold);
  at("summary").textContent = `${found} of ${withNoun(sweep.lesions.length, "lesion")} found, ` +
    `${withNoun(rate, "false positive")} per scan (${falsePositives} on ${withNoun(short(sweep.cases), "scan")}).`;
  input.setAttribute("aria-valuetext", `rating ${scoreText(threshold)}: ${at("summary").textContent}`);
  const body = at("sizes").tBodies[0];
  body.replaceChildren();
  for (const [low, high, words] of sweep.sizes) {
    const all = sweep.lesions.filter(lesion => lesion[1] >= low && (high === null || lesion[1] < high));
    const line = body.insertRow();
    line.insertCell().textContent = words;
    const cell = line.insertCell();
    cell.className = "number";
    cell.textContent = `${all.filter(hit).length} of ${all.length}`;
  }
}

const back = () => { input.value = levels.indexOf(sweep.start); show(); };
input.max = levels.length - 1;
input.addEventListener("input", show);
at("back").addEventListener("click", back);
at("slider").hidden = false;
back();
