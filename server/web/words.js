// What people read in the place of the wire's names: titles, meanings, and texts of the server that have
// such names in them. What has no words here goes by its name and by what the schema says of it.

const STRENGTH = "How strongly the face leads; 0 turns it off.";
const JOINS = ["Face joins after step", "0: from the beginning, for the closest face. Up to 4 is advised."];
const LEAVES = ["Face leaves after step", "What is left is the prompt's alone. Empty: it stays to the end."];

// name: [title, meaning]; without a meaning the schema's is good enough.
const WORDS = {
  id_weight: ["Weight of the face", STRENGTH],
  weight: ["Weight", STRENGTH],
  start_step: JOINS,
  id_end_step: LEAVES,
  end_step: LEAVES,
  identity_similarity: [
    "Measure the likeness",
    "Compares the face in the picture with the one in the photo.",
  ],
  strict_face: ["Only one face", "Refuses a photo that shows several."],
  guidance_scale: ["Guidance"],
  true_cfg: ["True CFG", "Above 1 the negative prompt counts, and each step takes twice the time."],
  negative_prompt: ["Negative prompt", "What to avoid. It counts only while True CFG is above 1."],
  num_steps: ["Steps", "Fewer are faster, more are finer."],
  max_sequence_length: ["Room for the prompt", "In tokens: one or two a word. What does not fit is cut off."],
  seed: ["Seed", "The same seed and settings give the same picture. Empty: a new one each time."],
  num_outputs: ["Pictures"],
  output_format: ["Format", ""],
  output_quality: ["Quality"],
};
const SPELLED = { id: "ID", cfg: "CFG", num: "number of", max: "maximum" };

export const capitalised = (text) => text.slice(0, 1).toUpperCase() + text.slice(1);

/** "num_steps" as "Steps"; what has no words here by its name: "face_order" as "Face order". */
export function titleOf(name) {
  const words = name.split("_").map((word) => SPELLED[word] ?? word);
  return WORDS[name]?.[0] ?? capitalised(words.join(" "));
}

export const meaningOf = ({ name, meaning }) => WORDS[name]?.[1] ?? meaning;

/** A text of the server with photos, people and settings as the page calls them, counted from 1. */
export function inWordsOfThePage(text) {
  return text
    .replace(/\bmain_face_image: /g, "Photo 1: ")
    .replace(/\bface_images\[(\d+)\]/g, (_, at) => `Photo ${Number(at) + 2}`)
    .replace(/\bfaces\[(\d+)\](?:\.(?:photo|identity)\b|\.(?=\w))?/g, (_, at) => `Person ${Number(at) + 1} `)
    .replace(/(Person \d+) (?=\W|$)/g, "$1")
    .replace(/^(Person \d+)? ?([a-z_]+)(?= must )/, (_, who, name) =>
      who ? `${who}: “${titleOf(name)}”` : `“${titleOf(name)}”`,
    );
}
