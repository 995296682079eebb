'use strict';
// data.js calls review.start with the queue; each file in clips/ calls review.details with the moments of some clips.
// Text from the data is only ever put into text nodes and attributes, so nothing in it can become part of the page.
const review = (() => {
const $ = id => document.getElementById(id);
let data, shown = [], current = -1, task = 0, sort = {key: 'unsure', down: true}, answers = new Map();
let player = {seek: null, toggle: null, at: 0};
const details = new Map();

function el(tag, attributes = {}, ...children) {
  const out = document.createElement(tag);
  for (const [k, v] of Object.entries(attributes)) {
    if (k.startsWith('on')) out.addEventListener(k.slice(2), v);
    else if (v !== null && v !== undefined && v !== false) out.setAttribute(k, v === true ? '' : v);
  }
  out.append(...children.filter(c => c !== null && c !== undefined));
  return out;
}
const signed = v => (v < 0 ? '−' : '+') + Math.abs(v).toPrecision(2);
function share(p, threshold) { // three digits, and more where they are needed to see the side of the threshold
  for (let n = 3; n < 9; n++) {
    const text = p.toFixed(n), v = Number(text);
    if (threshold === null || p === threshold || (v !== threshold && (v > threshold) === (p > threshold))) return text;
  }
  return p.toFixed(9);
}
function edge(name, k = task) { // the probability of a class from which it is predicted; null if there is none
  const {classes, threshold} = data.tasks[k];
  return threshold === null ? null : name === classes[1] ? threshold : 1 - threshold;
}
const said = (t, k = task) => t.class === undefined ? String(t.value) // a prediction in words
  : `${t.class} (${share(t.probability, edge(t.class, k))}${t.decision ? ', ' + t.decision : ''})`;
function time(s) {
  const tenths = Math.round(s*10), m = Math.floor(tenths/600), rest = (tenths % 600)/10;
  return `${m}:${rest < 10 ? '0' : ''}${rest.toFixed(1)}`;
}

// ---- answers, kept in this browser
function keep() {
  try { localStorage.setItem(data.key, JSON.stringify([...answers])); }
  catch { $('saved').textContent = 'This browser does not keep the answers: save them before you close the page.'; }
}
const key = (i, t) => JSON.stringify([data.clips[i].id, data.tasks[t].name]);
const answer = (i, t = task) => answers.get(key(i, t));
const classes = () => data.tasks[task].classes; // null for a number
const of = i => data.clips[i].tasks[task];
const predicted = i => classes() ? of(i).class : String(of(i).value);

function setAnswer(i, value) {
  if (value === null) answers.delete(key(i, task)); else answers.set(key(i, task), value);
  keep();
  const row = document.querySelector(`#rows tr[data-clip="${i}"]`);
  if (row) row.lastChild.textContent = value === null ? '' : value;
  count();
  showAnswer();
}
function agree() { setAnswer(current, predicted(current)); }
function disagree() {
  if (classes() && classes().length === 2) setAnswer(current, classes().find(c => c !== predicted(current)));
  else $('other').focus();
}

function csv() {
  const tasks = data.tasks.map((_, t) => t), clips = data.clips.map((_, i) => i);
  const extra = ['path', 'from', 'to', 'text'].filter(k => data.clips.some(c => c[k] !== null));
  const cell = v => {
    const text = v === null || v === undefined ? '' : String(v);
    return /[",\r\n]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const row = i => [...['id', 'video', ...extra].map(k => data.clips[i][k]), ...tasks.map(t => answer(i, t))];
  const rows = clips.filter(i => tasks.some(t => answer(i, t) !== undefined)).map(row);
  const head = ['id', 'video', ...extra, ...data.tasks.map(t => t.name)];
  return [head, ...rows].map(r => r.map(cell).join(',')).join('\r\n') + '\r\n';
}
function save() {
  const url = URL.createObjectURL(new Blob([csv()], {type: 'text/csv;charset=utf-8'}));
  const link = el('a', {href: url, download: 'answers.csv'});
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
  $('saved').replaceChildren('Score the run on them: ', el('code', {}, data.command));
}

// ---- the queue
const COLUMNS = [
  ['id', 'Clip', i => data.clips[i].id],
  ['class', 'Predicted', i => classes() ? of(i).class : of(i).value],
  ['p', 'Probability', i => of(i).p],
  ['decision', 'Decision', i => of(i).decision || ''],
  ['unsure', 'Uncertainty', i => of(i).unsure],
  ['answer', 'Your answer', i => answer(i) ?? '']];
const value = Object.fromEntries(COLUMNS.map(([k, , f]) => [k, f]));
let columns = COLUMNS; // of the task

function compare(a, b) {
  return typeof a === 'number' ? a - b : String(a).localeCompare(String(b), undefined, {numeric: true});
}
function matches(i, words) {
  const c = data.clips[i], t = of(i);
  if ($('decision').value && t.decision !== $('decision').value) return false;
  if ($('class').value && t.class !== $('class').value) return false;
  if ($('answered').value && ($('answered').value === 'done') !== (answer(i) !== undefined)) return false;
  const text = `${c.id}\n${c.video}\n${c.words}`.toLowerCase();
  return words.every(w => text.includes(w));
}
function queue() {
  const words = $('search').value.toLowerCase().split(/\s+/).filter(Boolean);
  const get = value[sort.key], way = sort.down ? -1 : 1;
  shown = data.clips.map((_, i) => i).filter(i => matches(i, words))
    .map(i => [get(i), i]).sort((a, b) => way*compare(a[0], b[0]) || a[1] - b[1]).map(o => o[1]);
  $('head').replaceChildren(...columns.map(([k, name]) => {
    const own = k === sort.key;
    const title = k === 'p' && classes().length === 2 ? `Probability of ${classes()[1]}` : name;
    const arrow = own ? (sort.down ? ' ▼' : ' ▲') : '';
    const press = () => {
      sort = {key: k, down: own ? !sort.down : k === 'unsure' || k === 'p'};
      queue();
      document.querySelector(`#head button[data-key="${k}"]`).focus();
    };
    return el('th', {scope: 'col', 'aria-sort': own ? (sort.down ? 'descending' : 'ascending') : null},
      el('button', {type: 'button', 'data-key': k, onclick: press}, title, el('span', {'aria-hidden': 'true'}, arrow)));
  }));
  $('rows').replaceChildren(...shown.map(row));
  count();
}
function row(i) {
  const cells = columns.slice(1).map(([k, , get]) => {
    const v = get(i), number = typeof v === 'number';
    const near = k === 'p' ? data.tasks[task].threshold : data.tasks[task].threshold === null ? null : .5;
    return el('td', {class: number ? 'number' : null}, k === 'p' || k === 'unsure' ? share(v, near) : String(v));
  });
  const link = el('a', {href: '#' + encodeURIComponent(data.clips[i].id), onclick: e => { e.preventDefault(); } },
    data.clips[i].id);
  return el('tr', {'data-clip': i, 'aria-current': i === current ? 'true' : null, onclick: () => show(i)},
    el('td', {}, link), ...cells);
}
function count() {
  const done = data.clips.filter((_, i) => answer(i) !== undefined).length;
  $('count').textContent = `${shown.length} of ${data.clips.length} clips are in the queue; ${done} have your answer`;
  $('save').disabled = !answers.size;
}
function step(by) {
  const at = shown.indexOf(current), to = at < 0 ? 0 : at + by;
  if (to >= 0 && to < shown.length) show(shown[to]);
}

// ---- a clip
function show(i) {
  for (const o of document.querySelectorAll('#rows tr[aria-current]')) o.removeAttribute('aria-current');
  current = i;
  const row = document.querySelector(`#rows tr[data-clip="${i}"]`);
  if (row) { row.setAttribute('aria-current', 'true'); row.scrollIntoView({block: 'nearest'}); }
  try { history.replaceState(null, '', '#' + encodeURIComponent(data.clips[i].id)); } catch { }
  render();
  const file = Math.floor(i/data.each);
  if (details.has(i) || document.querySelector(`script[data-file="${file}"]`)) return;
  const missing = () => { $('moments').textContent = `The file clips/${file}.js is missing: copy the whole folder.`; };
  document.head.append(el('script', {src: `clips/${file}.js`, 'data-file': file, onerror: missing}));
}
function addDetails(first, some) {
  some.forEach((d, k) => details.set(first + k, d));
  if (details.has(current) && !$('moments').childNodes.length) renderMoments();
}
function render() {
  const c = data.clips[current];
  $('clip').replaceChildren(
    el('h2', {id: 'clip-title'}, c.id),
    el('p', {class: 'soft'}, `video ${c.video}` + (c.from === null ? '' : `, ${time(c.from)}–${time(c.to)}`)),
    video(c),
    el('div', {id: 'answer', class: 'answer', role: 'group', 'aria-label': 'Your answer'}),
    el('div', {id: 'moments'}),
    tasksTable(c));
  showAnswer();
  if (details.has(current)) renderMoments();
}
function showAnswer() {
  if (current < 0) return;
  const own = answer(current), mine = predicted(current);
  const button = (id, text, pressed, press) =>
    el('button', {id, type: 'button', 'aria-pressed': pressed ? 'true' : 'false', onclick: press}, text);
  const focus = document.activeElement && document.activeElement.id;
  const parts = [el('strong', {}, `${data.tasks[task].name}: ${said(of(current))}`),
    button('agree', 'Agree (a)', own === mine, agree),
    button('disagree', 'Disagree (d)', own !== undefined && own !== mine, disagree), other(own),
    own === undefined ? null : button('undo', 'Undo (u)', false, () => setAnswer(current, null))];
  $('answer').replaceChildren(...parts.filter(Boolean));
  if (['agree', 'disagree', 'undo', 'other'].includes(focus)) ($(focus) || $('agree')).focus();
}
function other(own) { // for more than two classes, and for numbers
  if (classes() && classes().length === 2) return null;
  const set = e => setAnswer(current, e.target.value === '' ? null : e.target.value);
  if (!classes()) return el('label', {}, 'Right number ',
    el('input', {id: 'other', type: 'number', step: 'any', value: own ?? '', onchange: set}));
  const option = c => el('option', {value: c, selected: c === own}, c || '–');
  return el('label', {}, 'Right class ', el('select', {id: 'other', onchange: set}, ...['', ...classes()].map(option)));
}
function tasksTable(c) {
  const from = o => o.threshold === null ? '' : `${o.classes[1]} from ${share(o.threshold, null)}`;
  const line = (t, k) => el('tr', {},
    el('td', {}, el('button', {type: 'button', 'aria-pressed': k === task ? 'true' : 'false', onclick: () => choose(k)},
      data.tasks[k].name)),
    el('td', {}, t.class === undefined ? String(t.value) : t.class),
    el('td', {class: 'number'}, t.class === undefined ? '' : share(t.probability, edge(t.class, k))),
    el('td', {}, from(data.tasks[k])), el('td', {}, t.decision || ''));
  const head = ['Task', 'Predicted', 'Probability of it', 'Threshold', 'Decision'].map(o => el('th', {scope: 'col'}, o));
  return el('div', {}, el('h3', {}, 'All tasks'),
    el('table', {}, el('thead', {}, el('tr', {}, ...head)), el('tbody', {}, ...c.tasks.map(line))));
}

// ---- the player; without one, the timeline has a cursor of its own
function video(c) {
  player = {seek: null, toggle: null, at: c.from ?? 0};
  if (!c.path) return el('p', {class: 'warning'}, 'The file of this clip is not known, so nothing can be played.');
  const box = el('div', {}), part = c.from === null ? '' : `#t=${c.from},${c.to}`;
  const v = el('video', {controls: true, preload: 'auto', 'aria-label': `Player of clip ${c.id}`});
  const sources = [c.src, c.uri].filter((o, k, all) => o && all.indexOf(o) === k);
  const fail = what => { box.append(trouble(c, what)); player.seek = player.toggle = null; };
  v.addEventListener('error', () => {
    sources.shift();
    if (sources.length) v.src = sources[0] + part; else { v.remove(); fail(); }
  });
  v.addEventListener('loadedmetadata', () => {
    if (!v.videoWidth && c.picture) fail('Its sound can be played, but not its picture.');
    player.seek = s => { wanted = s; if (!v.seeking) v.currentTime = s; };
    if (player.at !== (c.from ?? 0)) player.seek(player.at);
    player.toggle = () => { if (v.paused) v.play().catch(() => { }); else v.pause(); };
  });
  let wanted = null; // a player can hang if it is told to seek while it seeks
  v.addEventListener('seeked', () => {
    const s = wanted;
    wanted = null;
    if (s !== null && Math.abs(s - v.currentTime) > .01) player.seek(s);
  });
  const follow = () => { if (wanted === null) move(v.currentTime); if (!v.paused) requestAnimationFrame(follow); };
  for (const e of ['play', 'seeked', 'timeupdate']) v.addEventListener(e, follow);
  v.src = sources[0] + part;
  box.append(v);
  return box;
}
function trouble(c, what) {
  const quoted = o => `'${o.replaceAll("'", "'\\''")}'`;
  return el('div', {class: 'warning', role: 'status'},
    el('p', {}, what || 'This browser cannot play the video: the file is missing, or its format is unknown to it.'),
    el('p', {}, 'File: ', el('code', {}, c.path)),
    el('p', {}, 'Open the page in another browser, or convert the file to a format that every browser plays: ',
      el('code', {}, `ffmpeg -i ${quoted(c.path)} -c:v libvpx-vp9 -c:a libopus ${quoted(c.path + '.webm')}`)));
}
function seek(s) { if (player.seek) player.seek(s); move(s); }

// ---- moments: bars over time, words, and a list
function renderMoments() {
  const d = details.get(current), own = d.contributions && d.contributions[task], box = $('moments');
  const absent = d.modalities.filter(m => !m.present).map(m => m.name);
  const notes = absent.length === d.modalities.length
    ? ['Nothing of this clip could be read, so the prediction is what the network answers without any evidence.']
    : absent.length ? [`The clip has no ${absent.join(', ')}.`] : [];
  const parts = notes.map(o => el('p', {class: 'warning'}, o));
  if (!own) {
    parts.push(el('p', {class: 'words'}, data.clips[current].text || ''));
    parts.push(el('p', {}, 'Without moments: hiccap_predict --html computes them.'));
  }
  else {
    const lanes = d.modalities.map((m, k) => ({...m, own: own[k]})).filter(m => m.spans.length);
    const top = Math.max(...lanes.flatMap(m => m.own.map(Math.abs)), 1e-9);
    const what = classes() ? d.explained[task] : 'a higher number';
    parts.push(el('h3', {}, `What speaks for ${what}`), legend(what, top), timeline(lanes, top, d.segments && d.segments[task]),
      ...lanes.filter(m => m.spans.some(s => s[2] !== null)).map(m => words(m, top)), without(d), list(lanes));
  }
  box.replaceChildren(...parts.filter(Boolean), sources(d));
  move(player.at);
}
function legend(what, top) {
  return el('p', {class: 'soft'}, el('i', {class: 'sign for'}), ` up, +: speaks for ${what}; `,
    el('i', {class: 'sign against'}), ` down, −: speaks against it. The largest is ${top.toPrecision(2)}`
    + (classes() ? ' in log-odds.' : '.'));
}
function timeline(lanes, top, segments) {
  const c = data.clips[current], timed = lanes.flatMap(m => m.spans).filter(s => s[0] !== null);
  const from = c.from ?? Math.min(0, ...timed.map(s => s[0])), to = c.to ?? Math.max(0, ...timed.map(s => s[1]));
  const box = el('div', {class: 'timeline', id: 'timeline'});
  for (const m of lanes) {
    const known = m.spans.every(s => s[0] !== null), n = m.spans.length;
    if (m.spans.some(s => s[2] !== null) && !known) continue; // words without seconds are below
    const x = (s, k) => {
      if (!known || to <= from) return [k/n, 1/n];
      const same = m.spans.filter(o => o[0] === s[0] && o[1] === s[1]); // words of one caption share its time
      const width = (s[1] - s[0])/same.length;
      return [(s[0] + same.indexOf(s)*width - from)/(to - from), width/(to - from)];
    };
    const bars = m.spans.map((s, k) => {
      const [left, width] = x(s, k), v = m.own[k], at = known ? time(s[0]) : `part ${k + 1} of ${n}`;
      const label = `${m.name} ${at}${s[2] === null ? '' : ' ' + s[2]}: ${signed(v)}`;
      return el('div', {class: `bar ${v < 0 ? 'against' : 'for'}`, title: label,
        style: `left:${100*left}%;width:${100*width}%;height:${50*Math.abs(v)/top}%`});
    });
    box.append(el('div', {class: 'lane'}, el('div', {}, m.name, known ? '' : ' (its times are not known)'),
      el('div', {class: 'bars'}, ...bars)));
  }
  if (!(to > from)) { box.classList.add('still'); return box; }
  if (segments) box.append(el('div', {class: 'lane segments'}, el('div', {}, 'segments'),
    el('div', {class: 'bars'}, ...segments.map(([start, end, peak]) => {
      const label = `${classes()[1]} ${time(start)}–${time(end)}, highest probability ${share(peak, null)}`;
      return el('div', {class: 'bar segment', title: label,
        style: `left:${100*(start - from)/(to - from)}%;width:${100*(end - start)/(to - from)}%`});
    }))));
  box.append(el('div', {class: 'lane axis'}, el('div', {}),
    el('div', {class: 'bars'}, ...[0, .25, .5, .75, 1].map(f => el('span', {}, time(from + f*(to - from)))))));
  const area = () => box.querySelector('.axis .bars').getBoundingClientRect();
  box.addEventListener('click', e => {
    const a = area(), f = (e.clientX - a.left)/a.width;
    if (f >= 0 && f <= 1) seek(from + f*(to - from));
  });
  box.addEventListener('keydown', e => {
    const s = {Home: from, End: to, ArrowRight: player.at + 1, ArrowLeft: player.at - 1}[e.key];
    if (s === undefined) return;
    e.preventDefault();
    seek(Math.min(Math.max(s, from), to));
  });
  const slider = {role: 'slider', tabindex: 0, 'aria-label': 'Time in the clip'};
  for (const [k, v] of Object.entries({...slider, 'aria-valuemin': from, 'aria-valuemax': to})) box.setAttribute(k, v);
  box.append(el('div', {class: 'cursor', id: 'cursor'}));
  box.range = [from, to];
  return box;
}
function move(s) { // the cursor, and the word that is said
  player.at = s;
  const box = $('timeline');
  if (!box || !box.range) return;
  const [from, to] = box.range, a = box.querySelector('.axis .bars');
  const f = Math.min(Math.max((s - from)/(to - from), 0), 1);
  $('cursor').style.left = `${a.offsetLeft + f*a.offsetWidth}px`;
  box.setAttribute('aria-valuenow', s.toFixed(1));
  box.setAttribute('aria-valuetext', time(s));
  for (const o of document.querySelectorAll('.words [data-from]'))
    o.classList.toggle('now', o.dataset.from <= s && s < o.dataset.to);
}
function words(m, top) {
  const one = (s, k) => {
    const v = m.own[k], size = Math.abs(v)/top, strong = size >= .1;
    const span = el('span', {class: strong ? (v < 0 ? 'w-against' : 'w-for') : null, style: `--share:${size}`,
      title: signed(v), 'data-from': s[0], 'data-to': s[1]}, s[2],
      strong ? el('sup', {}, v < 0 ? '−' : '+') : null);
    if (s[0] !== null) { span.classList.add('seek'); span.addEventListener('click', () => seek(s[0])); }
    return [span, ' '];
  };
  return el('p', {class: 'words', 'aria-label': `Words of ${m.name}`}, ...m.spans.flatMap(one));
}
function without(d) {
  const w = d.without[task];
  if (!w) return null;
  return el('p', {id: 'without'}, 'Without the three moments that speak most for it, the prediction ',
    el('strong', {}, said(of(current))), ' becomes ', el('strong', {}, said(w)), '.');
}
function list(lanes) {
  const all = lanes.flatMap(m => m.spans.map((s, k) => [m.own[k], m.name, s]));
  all.sort((a, b) => Math.abs(b[0]) - Math.abs(a[0]));
  const to = s => el('button', {type: 'button', onclick: () => seek(s[0])}, `${time(s[0])}–${time(s[1])}`);
  const line = ([v, name, s]) => el('tr', {},
    el('td', {}, s[0] === null ? '–' : to(s)),
    el('td', {}, name), el('td', {}, s[2] ?? ''), el('td', {class: 'number'}, signed(v)));
  const head = ['Time', 'Modality', 'Words', 'Contribution'].map(o => el('th', {scope: 'col'}, o));
  return el('div', {}, el('h3', {}, 'Largest moments'),
    el('table', {id: 'list'}, el('thead', {}, el('tr', {}, ...head)), el('tbody', {}, ...all.slice(0, 8).map(line))));
}
function sources(d) {
  const line = m => el('li', {}, `${m.name}: ` + (m.present ? `${m.positions} positions` : 'absent'),
    m.source ? `, from ${m.source}` : '');
  return el('div', {}, el('h3', {}, 'What the network reads'), el('ul', {}, ...d.modalities.map(line)));
}

// ---- start
function options(select, names) {
  $(select).replaceChildren(...['', ...names].map(o => el('option', {value: o}, o || 'all')));
  $(select).disabled = !names.length;
}
function choose(t) {
  task = t;
  $('task').value = String(t);
  sort = {key: classes() ? 'unsure' : 'class', down: true};
  options('class', classes() || []);
  const decisions = ['pass', 'review', 'block'].filter(o => data.clips.some((_, i) => of(i).decision === o));
  options('decision', decisions);
  columns = COLUMNS.filter(([k]) =>
    classes() ? k !== 'decision' || decisions.length : ['id', 'class', 'answer'].includes(k));
  queue();
  if (current >= 0) render();
}
function keys(e) {
  if (e.ctrlKey || e.metaKey || e.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(e.target.tagName)) return;
  if (e.key === ' ' && /^(BUTTON|VIDEO|A)$/.test(e.target.tagName)) return; // they have a use for it
  const press = {
    j: () => step(1), k: () => step(-1), a: agree, d: disagree, ' ': () => player.toggle && player.toggle(),
    u: () => setAnswer(current, null)}[e.key];
  if (!press || current < 0) return;
  e.preventDefault();
  press();
}
function failed() { // videos without a prediction, which the queue cannot show
  const box = $('failed'), n = data.failed.length;
  box.hidden = !n;
  box.open = true;
  box.replaceChildren(el('summary', {}, `Not predicted: ${n} ${n === 1 ? 'video' : 'videos'}`),
    el('ul', {}, ...data.failed.map(([file, why]) => el('li', {}, el('code', {}, file), `: ${why}`))));
}
function start(given) {
  data = given;
  document.title = $('title').textContent = data.title;
  try { answers = new Map(JSON.parse(localStorage.getItem(data.key))); } catch { /* nothing is kept */ }
  $('task').replaceChildren(...data.tasks.map((o, t) => el('option', {value: t}, o.name)));
  $('task').addEventListener('change', () => choose(Number($('task').value)));
  $('search').addEventListener('input', queue);
  for (const o of ['decision', 'class', 'answered']) $(o).addEventListener('change', queue);
  $('filters').addEventListener('submit', e => e.preventDefault());
  $('save').addEventListener('click', save);
  document.addEventListener('keydown', keys);
  addEventListener('resize', () => { if (current >= 0) move(player.at); });
  failed();
  choose(0);
  const wanted = (() => { try { return decodeURIComponent(location.hash.slice(1)); } catch { return ''; } })();
  const at = data.clips.findIndex(c => c.id === wanted);
  if (at >= 0) show(at); else if (shown.length) show(shown[0]);
}
return {start, details: addDetails, csv};
})();
