// Where questions are written: text, and pictures that are chosen, pasted or dropped.
import { element, icon, iconButton } from "./dom.js";
import { PictureFault, pictureFiles, readPicture } from "./pictures.js";

const MOST_PICTURES = 16;

export class Composer {
  /** @param on {send(text, pictures), stop(), editLast(), refuse(message)}. */
  constructor(form, on) {
    this.form = form;
    this.on = on;
    this.text = form.querySelector("textarea");
    this.tray = form.querySelector("#tray");
    this.sendButton = form.querySelector("#send");
    this.chooser = form.querySelector("input[type=file]");
    this.pictures = [];
    this.isRunning = false;
    form.querySelector("#attach").append(icon("picture"));
    form.querySelector("#attach").onclick = () => this.chooser.click();
    this.chooser.onchange = () => {
      this.attach([...this.chooser.files]);
      this.chooser.value = "";
    };
    form.onsubmit = (event) => {
      event.preventDefault();
      if (this.isRunning) this.on.stop();
      else this.send();
    };
    this.text.oninput = () => this.show();
    this.text.onkeydown = (event) => this.key(event);
    this.text.onpaste = (event) => {
      const files = pictureFiles(event.clipboardData);
      if (files.length) {
        event.preventDefault();
        this.attach(files);
      }
    };
    this.takeDrops();
    this.show();
  }

  key(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      if (!this.isRunning) this.send();
    } else if (event.key === "ArrowUp" && !this.text.value && !this.pictures.length) {
      event.preventDefault();
      this.on.editLast();
    }
  }

  takeDrops() {
    let depth = 0;
    const over = (is) => document.body.classList.toggle("dropping", is);
    const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
    addEventListener("dragenter", (event) => {
      if (!hasFiles(event)) return;
      depth += 1;
      over(true);
    });
    addEventListener("dragleave", (event) => {
      if (hasFiles(event)) over((depth = Math.max(0, depth - 1)) > 0);
    });
    addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
    addEventListener("drop", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      depth = 0;
      over(false);
      const files = pictureFiles(event.dataTransfer);
      if (files.length) this.attach(files);
      else this.on.refuse("Only pictures can be dropped here.");
    });
  }

  async attach(files) {
    for (const file of files) {
      if (this.pictures.length >= MOST_PICTURES) {
        this.on.refuse(`At most ${MOST_PICTURES} pictures at once.`);
        break;
      }
      try {
        this.pictures.push(await readPicture(file));
      } catch (fault) {
        if (!(fault instanceof PictureFault)) throw fault;
        this.on.refuse(fault.message);
      }
    }
    this.show();
    this.text.focus();
  }

  send() {
    const text = this.text.value.trim();
    if (!text && !this.pictures.length) return;
    const { pictures } = this;
    if (this.on.send(text, pictures)) this.fill("", []);
  }

  fill(text, pictures) {
    this.text.value = text;
    this.pictures = [...pictures];
    this.show();
  }

  setRunning(isRunning) {
    this.isRunning = isRunning;
    this.show();
  }

  show() {
    this.tray.hidden = !this.pictures.length;
    this.tray.replaceChildren(
      ...this.pictures.map((url, place) =>
        element(
          "div",
          { class: "thumbnail" },
          element("img", { src: url, alt: `Attached picture ${place + 1}` }),
          iconButton("close", `Remove picture ${place + 1}`, () => {
            this.pictures.splice(place, 1);
            this.show();
            this.text.focus();
          }),
        ),
      ),
    );
    this.text.style.height = "auto";
    this.text.style.height = `${Math.min(this.text.scrollHeight, 240)}px`;
    const label = this.isRunning ? "Stop the answer" : "Send";
    this.sendButton.setAttribute("aria-label", label);
    this.sendButton.title = this.isRunning ? "Stop (Esc)" : "Send (Enter)";
    this.sendButton.replaceChildren(icon(this.isRunning ? "stop" : "send"));
    this.sendButton.disabled = !this.isRunning && !this.text.value.trim() && !this.pictures.length;
  }
}
