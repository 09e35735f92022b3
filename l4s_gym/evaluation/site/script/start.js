// The first drawing, and what draws it again.

for (const legend of all(".legend")) {
  for (const [kind, name] of Object.entries(data.kinds)) {
    if (data.agents.some((agent) => agent.kind === kind))
      legend.append(element("span", {}, element("span", { class: `kind ${kind}` }), name));
  }
}
const drawAll = () => {
  tradeOff();
  gap();
  cost();
  showChoice();
};
one("#chooser").hidden = false;
data.compared.forEach((name, k) => {
  if (k < MOST && comparable.includes(name)) slots[k] = name;
});
showSuite();
filterBoard();
drawAll();
let width = innerWidth;
let waiting = 0;
addEventListener("resize", () => {
  if (innerWidth === width) return; // a phone's address bar comes and goes
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    width = innerWidth;
    drawAll();
  }, 150);
});
const openTarget = () => {
  const target =
    location.hash.startsWith("#from-") && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target) {
    target.open = true;
    target.scrollIntoView();
  }
};
addEventListener("hashchange", openTarget);
openTarget();
