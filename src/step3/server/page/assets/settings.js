// The parameters of requests: kept in this browser, shown in a drawer, checked as they are typed.
import { apiKey } from "./client.js";

const KEPT = "step3.settings";
const NUMBERS = {
  temperature: { low: 0, high: 2, whole: false, name: "Temperature" },
  top_p: { low: 0, high: 1, whole: false, name: "Top-p" },
  max_tokens: { low: 1, high: 1e6, whole: true, name: "Longest answer" },
  seed: { low: 0, high: 2 ** 53, whole: true, name: "Seed" },
};

/** A tool that the bundled model can call. */
export const WEATHER_TOOL = {
  type: "function",
  function: {
    name: "get_weather",
    description: "Get the weather in a city.",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};

/** A setting that a request cannot be made from. */
export class SettingFault extends Error {
  constructor(message, field) {
    super(message);
    this.field = field;
  }
}

export class Settings {
  /** @param on {key(), change()}. */
  constructor(dialog, on) {
    this.dialog = dialog;
    this.on = on;
    this.fields = dialog.querySelector("form").elements;
    this.fault = dialog.querySelector("#settings-fault");
    for (const [name, value] of Object.entries(this.read())) {
      if (name in this.fields) this.fields[name].value = value;
    }
    this.fields.key.value = apiKey.get();
    dialog.querySelector("form").addEventListener("input", () => this.check());
    this.fields.key.addEventListener("change", () => {
      apiKey.set(this.fields.key.value.trim());
      on.key();
    });
    dialog.querySelector("#reset-settings").onclick = () => this.reset();
    dialog.querySelector("#example-tools").onclick = () => this.setTools([WEATHER_TOOL]);
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close();
    });
  }

  read() {
    try {
      return JSON.parse(localStorage.getItem(KEPT)) ?? {};
    } catch {
      return {};
    }
  }

  check() {
    const names = [...Object.keys(NUMBERS), "system", "tools"];
    localStorage.setItem(KEPT, JSON.stringify(Object.fromEntries(names.map((name) => [name, this.fields[name].value]))));
    for (const name of names) this.fields[name].removeAttribute("aria-invalid");
    try {
      this.parameters();
      this.fault.hidden = true;
    } catch (fault) {
      this.fields[fault.field].setAttribute("aria-invalid", "true");
      this.fault.textContent = fault.message;
      this.fault.hidden = false;
    }
    this.on.change();
  }

  reset() {
    for (const name of [...Object.keys(NUMBERS), "system", "tools"]) this.fields[name].value = "";
    this.check();
  }

  setTools(tools) {
    this.fields.tools.value = tools ? toolsText(tools) : "";
    this.check();
  }

  /** Takes the example's tool out again, but no tools of the user's own. */
  dropExampleTools() {
    if (this.fields.tools.value === toolsText([WEATHER_TOOL])) this.setTools(null);
  }

  get system() {
    return this.fields.system.value;
  }

  /** What a request says beside its messages; what is left empty is the model's own.
   * @throws {SettingFault} */
  parameters() {
    const given = {};
    for (const [name, bounds] of Object.entries(NUMBERS)) {
      const text = this.fields[name].value.trim();
      if (text) given[name] = number(text, name, bounds);
    }
    const tools = this.tools();
    if (tools) given.tools = tools;
    if (this.fields.model.value) given.model = this.fields.model.value;
    return given;
  }

  tools() {
    const text = this.fields.tools.value.trim();
    if (!text) return null;
    let tools;
    try {
      tools = JSON.parse(text);
    } catch (error) {
      throw new SettingFault(`The tools are not valid JSON: ${error.message}`, "tools");
    }
    if (!Array.isArray(tools)) throw new SettingFault('The tools must be a list: [{"type": "function", "function": {…}}].', "tools");
    if (tools.some((tool) => tool?.type !== "function" || typeof tool.function?.name !== "string")) {
      throw new SettingFault('Each tool must look like {"type": "function", "function": {"name": …, "parameters": {…}}}.', "tools");
    }
    return tools.length ? tools : null;
  }

  showModels(models) {
    const options = models.map((model) => new Option(model.id, model.id));
    this.fields.model.replaceChildren(...options);
  }

  open(field) {
    this.check();
    this.dialog.showModal();
    if (field) this.fields[field].focus();
  }
}

function toolsText(tools) {
  return JSON.stringify(tools, null, 2);
}

function number(text, name, { low, high, whole, name: shown }) {
  const value = Number(text.replace(",", "."));
  if (Number.isNaN(value) || value < low || value > high || (whole && !Number.isInteger(value))) {
    const kind = whole ? "a whole number" : "a number";
    const range = high >= 1e6 ? `of at least ${low}` : `from ${low} to ${high}`;
    throw new SettingFault(`${shown} must be ${kind} ${range}.`, name);
  }
  return value;
}
