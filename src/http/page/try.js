// A prediction by hand: a form from the model's signature, or its body as JSON.

import { $, copy, el, say } from "./dom.js";
import { milliseconds } from "./words.js";

// A row of more values is no form.
const FIELDS = 32;
// A body of more is not written out.
const VALUES = 20000;

let models = [];
let model = null;
// What makes the form of the model that is shown: it is kept as long as that does not change.
let formed = "";

const byForm = () => $("try-forms").querySelector("input:checked").value === "form";

// The values of a row: [name, datatype, ordinal]; none where a row is no form.
function fieldsOf({ inputs }) {
  if (inputs.length === 1) {
    const { datatype, shape, features = [], name } = inputs[0];
    const width = shape.length === 1 ? 1 : shape.length === 2 ? (features.length || shape[1]) : 0;
    if (width < 1 || width > FIELDS) return null;
    return Array.from({ length: width }, (_, i) => [features[i] ?? (width === 1 ? name : `${name} ${i + 1}`), datatype]);
  }
  const single = ({ shape }) => shape.length === 1 || (shape.length === 2 && shape[1] === 1);
  return inputs.length <= FIELDS && inputs.every(single) ? inputs.map(({ name, datatype }) => [name, datatype]) : null;
}

// Values like those of the interface's description.
function example(datatype, i) {
  if (datatype === "BOOL") return true;
  if (datatype === "BYTES") return "text";
  return datatype.startsWith("INT") ? i : i + 0.5;
}

// The body of one row with these values.
function bodyOf({ inputs }, values) {
  if (inputs.length > 1) return { instances: [Object.fromEntries(inputs.map(({ name }, i) => [name, values[i]]))] };
  const { shape, features = [] } = inputs[0];
  if (shape.length === 1) return { instances: values };
  return { instances: [features.length === values.length ? Object.fromEntries(features.map((name, i) => [name, values[i]])) : values] };
}

const sizeOf = ({ shape }) => shape.slice(1).reduce((all, length) => all * Math.max(length, 1), 1);
const countOf = ({ inputs }) => inputs.reduce((all, input) => all + sizeOf(input), 0);

// A row of what cannot be a form; nothing where it is too long.
function anyBody({ inputs }) {
  if (countOf({ inputs }) > VALUES) return null;
  const nested = ([length, ...rest], datatype) => {
    const one = rest.length ? nested(rest, datatype) : example(datatype, 0);
    return Array(length < 0 ? 1 : length).fill(one);
  };
  const row = ({ shape, datatype }) => (shape.length > 1 ? nested(shape.slice(1), datatype) : example(datatype, 0));
  return { instances: [inputs.length === 1 ? row(inputs[0]) : Object.fromEntries(inputs.map((input) => [input.name, row(input)]))] };
}

function values() {
  return [...$("try-fields").querySelectorAll("input")].map((input) => {
    if (input.type === "checkbox") return input.checked;
    if (input.type === "text") return input.value;
    return input.value === "" ? null : Number(input.value);
  });
}

function field([name, datatype], i) {
  const value = example(datatype, i);
  const number = datatype !== "BOOL" && datatype !== "BYTES";
  const input = el("input", {
    type: datatype === "BOOL" ? "checkbox" : number ? "number" : "text",
    id: `try-field-${i}`, step: datatype.startsWith("FP") ? "any" : "1",
    value: datatype === "BOOL" ? null : value, checked: datatype === "BOOL",
  });
  return el("label.field", { for: `try-field-${i}` }, el("span", name.replaceAll("_", " ")), input);
}

function form() {
  const fields = fieldsOf(model);
  const json = !fields || !byForm();
  $("try-forms").hidden = !fields;
  $("try-fields").hidden = json;
  $("try-json").hidden = !json;
  const key = JSON.stringify([model.name, model.inputs]);
  if (key === formed) return;
  formed = key;
  $("try-fields").replaceChildren(...(fields ?? []).map(field));
  const body = fields ? bodyOf(model, values()) : anyBody(model);
  $("try-note").hidden = body !== null;
  if (body) write(body);
  else {
    $("try-body").value = "";
    say($("try-note"), `A row of ${model.name} has ${countOf(model)} values, which is too many to write out here: paste a body.`);
  }
  $("try-answer").replaceChildren();
}

const write = (body) => {
  const text = JSON.stringify(body, null, 1);
  $("try-body").value = text.length < 400 ? JSON.stringify(body, null, 2) : JSON.stringify(body);
};

export function show(served) {
  models = served;
  $("try-empty").hidden = models.length > 0;
  $("try-rest").hidden = models.length === 0;
  $("try-forms").hidden = models.length === 0;
  if (!models.length) return;
  const names = models.map(({ name }) => name);
  const list = $("try-model");
  if (names.join() !== [...list.options].map((option) => option.value).join()) {
    const before = list.value;
    list.replaceChildren(...names.map((name) => el("option", name, { value: name })));
    list.value = names.includes(before) ? before : names[0];
  }
  model = models.find(({ name }) => name === list.value);
  form();
}

// Asks for a model by a button beside it.
export function choose(name) {
  $("try-model").value = name;
  show(models);
  $("h-try").scrollIntoView({ block: "start" });
  $("try-model").focus();
}

const body = () => ($("try-json").hidden ? JSON.stringify(bodyOf(model, values())) : $("try-body").value);

async function ask(event) {
  event.preventDefault();
  const begun = performance.now();
  const place = $("try-answer");
  try {
    const answer = await fetch(`predict/${encodeURIComponent(model.name)}`, { method: "POST", headers: { "content-type": "application/json" }, body: body() });
    const text = await answer.text();
    const took = performance.now() - begun;
    let pretty = text;
    try {
      pretty = JSON.stringify(JSON.parse(text), null, 2);
    } catch {}
    const timing = answer.headers.get("server-timing")?.match(/infer;dur=([\d.]+)/);
    const facts = ["x-model-name", "x-model-version", "x-model-digest", "x-state-version", "x-request-id"]
      .map((name) => [name, answer.headers.get(name)]).filter(([, value]) => value);
    place.replaceChildren(
      el("p.answer-head", el(`span.badge.${answer.ok ? "good" : "bad"}`, `${answer.status}`), el("span", `${milliseconds(took)} from here`), timing && el("span", `${milliseconds(Number(timing[1]))} of inference`)),
      el("pre", pretty.length > 20000 ? `${pretty.slice(0, 20000)}…` : pretty, { tabindex: "0", "aria-label": "The answer" }),
      el("dl.facts", facts.map(([name, value]) => [el("dt", name), el("dd", value)])),
    );
  } catch (error) {
    place.replaceChildren(el("p.answer-head", el("span.badge.bad", "no answer"), error.message));
  }
}

export function start() {
  $("try").addEventListener("submit", ask);
  $("try-model").addEventListener("change", () => show(models));
  $("try-forms").addEventListener("change", () => {
    // What was filled in goes along.
    if (!byForm() && fieldsOf(model)) write(bodyOf(model, values()));
    form();
  });
  $("try-curl").addEventListener("click", async ({ target }) => {
    const quoted = body().replaceAll("'", "'\\''");
    await copy(`curl ${new URL(`predict/${model.name}`, location.href)} -d '${quoted}'`);
    target.classList.add("copied");
    setTimeout(() => target.classList.remove("copied"), 1200);
  });
}
