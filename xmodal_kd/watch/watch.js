
// ------------------------------------------------------------------ what is new, asked for while the page is looked at

const gone = Object.assign(document.createElement("div"), { className: "gone", hidden: true,
  textContent: "No answer: the program that showed this has ended." });
document.body.append(gone);

function renewed(old, html, digest) {
  const part = old ?? Object.assign(document.createElement("div"), { className: "part" });
  if ([...part.querySelectorAll("audio")].some((audio) => !audio.paused)) return part;  // heard to its end first
  const open = [...part.querySelectorAll("details")].map((one) => one.open);
  const aside = [...part.querySelectorAll(".scroll")].map((one) => one.scrollLeft);
  part.innerHTML = html;
  part.dataset.digest = digest;
  part.querySelectorAll("details").forEach((one, i) => { one.open = open[i] ?? false; });
  part.querySelectorAll(".scroll").forEach((one, i) => { one.scrollLeft = aside[i] ?? 0; });
  return part;
}

async function ask() {
  const parts = document.getElementById("parts");
  const known = [...parts.children].map((one) => `${one.id}=${one.dataset.digest}`).join("&");
  const answer = await fetch(`now?${known}`, { cache: "no-store" });
  if (!answer.ok) throw new Error(answer.statusText);
  const { order, html } = await answer.json();
  const fresh = [];
  const wanted = order.map(([id, digest]) => {
    const old = document.getElementById(id);
    if (!(id in html)) return old;
    const part = renewed(old, html[id], digest);
    part.id = id;
    if (part.dataset.digest === digest) fresh.push(part);
    return part;
  }).filter((part) => part);
  for (const child of [...parts.children]) if (!wanted.includes(child)) child.remove();
  wanted.forEach((part, i) => { if (parts.children[i] !== part) parts.insertBefore(part, parts.children[i] ?? null); });
  fresh.forEach(enliven);
}

async function watch() {
  if (!document.hidden) {
    try {
      await ask();
      gone.hidden = true;
    } catch {
      gone.hidden = false;
    }
  }
  setTimeout(watch, 2000);
}

setTimeout(watch, 2000);
