// The same request in other languages. Never a key and never a photo: placeholders and names of files
// stand for them.

import { BASE } from "./api.js";
import { mapFiles } from "./sources.js";

const KEY = "YOUR_API_KEY";

/** Each takes a request with names in the place of files, and {needsKey, format: the ending of a name}. */
export const SNIPPETS = { curl, Python: python, JavaScript: javascript };

class File {
  constructor(name) {
    this.name = name;
  }
}

/** The fields, with a File in the place of each name of one. */
const fieldsOf = (request) => Object.entries(mapFiles(request, (name) => new File(name)));

const address = (query = "") => new URL(`v1/flux-pulid${query}`, BASE).href;

function curl(request, { needsKey, format }) {
  const text = `{${fieldsOf(request)
    .map(([name, value]) => `"${name}":${literal(value, { file: (name) => `"\0${name}\0"` })}`)
    .join(",")}}`;
  // Every second part is the name of a file; no other text has the NUL character.
  const parts = text
    .split("\0")
    .map((part, i) => (i % 2 ? `base64 < ${part} | tr -d '\\n';` : `printf '%s' ${shell(part)};`));
  const lines = [
    `{ ${parts.join("\n  ")} } |`,
    `  curl --fail-with-body -sS ${shell(address())} \\`,
    "    -H 'content-type: application/json' \\",
    ...(needsKey ? [`    -H 'x-api-key: ${KEY}' \\`] : []),
    `    --data-binary @- -o portrait.${format}`,
  ];
  if (request.num_outputs > 1) lines.unshift("# The first picture; the header Link names the others.");
  return `${lines.join("\n")}\n`;
}

const PYTHON = { true: "True", false: "False", file: (name) => `text_of("${name}")` };

function python(request, { needsKey, format }) {
  const fields = fieldsOf(request).map(([name, value]) => `        "${name}": ${literal(value, PYTHON)},`);
  return `import base64
import pathlib

import requests


def text_of(file):
    return base64.b64encode(pathlib.Path(file).read_bytes()).decode()


answer = requests.post(
    ${JSON.stringify(address("?response_format=json"))},
${needsKey ? `    headers={"x-api-key": "${KEY}"},\n` : ""}    json={
${fields.join("\n")}
    },
    timeout=600,
)
if not answer.ok:
    raise SystemExit(answer.json()["error"])
for number, image in enumerate(answer.json()["images"]):
    pathlib.Path(f"portrait-{number}.${format}").write_bytes(base64.b64decode(image))
`;
}

const JAVASCRIPT = { file: (name) => `await readFile("${name}", "base64")` };

function javascript(request, { needsKey, format }) {
  const fields = fieldsOf(request).map(([name, value]) => `    ${name}: ${literal(value, JAVASCRIPT)},`);
  return `import { readFile, writeFile } from "node:fs/promises";

const answer = await fetch(${JSON.stringify(address("?response_format=json"))}, {
  method: "POST",
  headers: { "content-type": "application/json"${needsKey ? `, "x-api-key": "${KEY}"` : ""} },
  body: JSON.stringify({
${fields.join("\n")}
  }),
});
const { images, error } = await answer.json();
if (error) throw new Error(error);
for (const [number, image] of images.entries()) {
  await writeFile(\`portrait-\${number}.${format}\`, image, "base64");
}
`;
}

/** A value as JSON, but for what the language spells in another way. */
function literal(value, spelled) {
  if (value instanceof File) return spelled.file(value.name);
  if (Array.isArray(value)) return `[${value.map((one) => literal(one, spelled)).join(", ")}]`;
  if (value !== null && typeof value === "object") {
    const fields = Object.entries(value).map(([name, one]) => `"${name}": ${literal(one, spelled)}`);
    return `{${fields.join(", ")}}`;
  }
  return spelled[value === true || value === false ? value : null] ?? JSON.stringify(value);
}

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;
