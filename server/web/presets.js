// Looks: the advice of the PuLID-FLUX authors on when the face comes in and how the prompt is followed.
//
// Source: docs/pulid_for_flux.md ("Useful Tips") and the examples of app_flux.py in ToTheBeginning/PuLID.
// What a look does not name stays at the server's default.

import { el, radioIn } from "./dom.js";

const NAMES = ["start_step", "guidance_scale", "true_cfg"];

const LOOKS = [
  { title: "Closest face", hint: "The face leads from the first step.", values: {} },
  {
    title: "Photo-real",
    hint: "The face joins after step 4: natural light and pose.",
    values: { start_step: 4 },
  },
  { title: "Stylised", hint: "Drawings, comics, 3D: the face joins after step 1.", values: { start_step: 1 } },
  {
    title: "Strong style",
    hint: "If face or style come out weak. Takes twice the time.",
    values: { start_step: 1, guidance_scale: 1, true_cfg: 5 },
  },
];

export class Presets {
  /** `onChoose(values)` hears what a look that is chosen sets, beside the controls. */
  constructor(root, controls, onChoose) {
    this.controls = controls;
    this.radios = LOOKS.map(({ title, hint, values }, i) => {
      const attributes = {
        name: "look",
        "aria-labelledby": `look-${i}`,
        "aria-describedby": `look-${i}-hint`,
      };
      const choose = () => {
        controls.set({ ...defaults(), ...values });
        onChoose(values);
      };
      const { radio, label } = radioIn(
        attributes,
        choose,
        el("strong", { id: `look-${i}` }, title),
        el("span", { id: `look-${i}-hint`, class: "hint" }, hint),
      );
      root.append(label);
      return radio;
    });
    this.sync();
  }

  /** Mark the look that the controls have now, if it is one. */
  sync() {
    LOOKS.forEach(({ values }, i) => {
      const wanted = (name) => values[name] ?? this.controls.get(name)?.parameter.initial;
      this.radios[i].checked = NAMES.every((name) => this.controls.value(name) === (wanted(name) ?? null));
    });
  }
}

const defaults = () => Object.fromEntries(NAMES.map((name) => [name, null]));

/** Portrait, square and landscape, out of the default size: the same number of pixels each time. */
export class Shapes {
  constructor(root, controls) {
    this.controls = controls;
    const width = controls.get("width").parameter.initial;
    const height = controls.get("height").parameter.initial;
    const side = Math.round(Math.sqrt(width * height) / 16) * 16;
    const shapes = [
      ["Portrait", width, height],
      ["Square", side, side],
      ["Landscape", height, width],
    ];
    this.radios = shapes.map(([title, ...size]) => {
      const choose = () => controls.set({ width: size[0], height: size[1] });
      const { radio, label } = radioIn({ name: "shape", value: size.join("x") }, choose, title);
      label.title = `${size[0]} × ${size[1]}`;
      root.append(label);
      return radio;
    });
    this.sync();
  }

  sync() {
    const size = `${this.controls.value("width")}x${this.controls.value("height")}`;
    for (const radio of this.radios) radio.checked = radio.value === size;
  }
}
