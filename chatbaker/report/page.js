// The filter over the judged questions. Without it the whole list is there.
const form = document.querySelector("form");
if (form) {
  const items = [...document.querySelectorAll("#questions > details")];
  const texts = items.map((item) => item.textContent.normalize("NFC").toLowerCase());
  const [search, category] = form.elements;
  const count = form.querySelector("output");
  const show = () => {
    const wanted = search.value.normalize("NFC").toLowerCase().trim();
    items.forEach((item, at) => {
      item.hidden = !texts[at].includes(wanted) || (category.value && item.dataset.category !== category.value);
    });
    count.value = `${items.filter((item) => !item.hidden).length} of ${items.length}`;
  };
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  show();
}
