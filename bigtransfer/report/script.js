for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const key = (row, i) => row.cells[i].dataset.v === undefined ? row.cells[i].textContent : Number(row.cells[i].dataset.v);
  heads.forEach((head, i) => head.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = [...body.rows].sort((a, b) => {
      const x = key(a, i), y = key(b, i);
      return (typeof x === "string" ? x.localeCompare(y, undefined, {numeric: true}) : x - y) * (up ? 1 : -1);
    });
    body.append(...rows);
  }));
}
for (const map of document.querySelectorAll(".landscape")) {
  const tip = map.querySelector(".tip"), tile = tip.querySelector("i"), text = tip.querySelector("span");
  const spots = [...map.querySelectorAll(".spot")], side = 2 * map.dataset.tile, columns = Number(map.dataset.columns);
  if (tile) tile.style.backgroundSize = `${columns * side}px ${map.dataset.rows * side}px`;
  const hide = () => { tip.hidden = true; spots.forEach(spot => spot.classList.remove("now")); };
  const show = spot => {
    hide();
    spot.classList.add("now");
    text.textContent = spot.dataset.said;
    const i = spots.indexOf(spot);
    if (tile) tile.style.backgroundPosition = `${-side * (i % columns)}px ${-side * Math.floor(i / columns)}px`;
    tip.hidden = false;
    const frame = map.getBoundingClientRect(), at = spot.getBoundingClientRect();
    const x = at.left - frame.left + at.width / 2, y = at.top - frame.top;
    tip.style.left = `${Math.max(0, Math.min(x - tip.offsetWidth / 2, frame.width - tip.offsetWidth))}px`;
    tip.style.top = `${y > tip.offsetHeight + 8 ? y - tip.offsetHeight - 8 : y + at.height + 8}px`;
  };
  // The nearest within a finger's width, since points are small.
  const near = event => {
    let best = null, least = 18 ** 2;
    for (const spot of spots) {
      if (spot.classList.contains("dim")) continue;
      const at = spot.getBoundingClientRect();
      const far = (at.left + at.width / 2 - event.clientX) ** 2 + (at.top + at.height / 2 - event.clientY) ** 2;
      if (far < least) { best = spot; least = far; }
    }
    if (best) show(best); else hide();
  };
  map.addEventListener("pointermove", near);
  map.addEventListener("pointerdown", near);
  map.addEventListener("pointerleave", hide);
  const buttons = [...map.parentNode.querySelectorAll(".legend button")];
  buttons.forEach(button => button.addEventListener("click", () => {
    const on = button.getAttribute("aria-pressed") !== "true";
    buttons.forEach(other => other.setAttribute("aria-pressed", String(on && other === button)));
    spots.forEach(spot => spot.classList.toggle("dim", on && spot.dataset.kind !== button.dataset.kind));
  }));
}
