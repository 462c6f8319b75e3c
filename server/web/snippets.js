// The same request in other languages. Never a key: a placeholder stands for it.

import { BASE } from "./api.js";

const KEY = "YOUR_API_KEY";
const PHOTO = "photo.jpg";

/** Each takes the parameters without the photo, and {needsKey, format: the ending of the file's name}. */
export const SNIPPETS = { curl, Python: python, JavaScript: javascript };

const address = (query = "") => new URL(`v1/flux-pulid${query}`, BASE).href;

function curl(parameters, { needsKey, format }) {
  const head = `${JSON.stringify(parameters).slice(0, -1)},"main_face_image":"`;
  const lines = [
    `{ printf '%s' ${shell(head)}; base64 < ${PHOTO} | tr -d '\\n'; printf '"}'; } |`,
    `  curl --fail-with-body -sS ${shell(address())} \\`,
    "    -H 'content-type: application/json' \\",
    ...(needsKey ? [`    -H 'x-api-key: ${KEY}' \\`] : []),
    `    --data-binary @- -o portrait.${format}`,
  ];
  if (parameters.num_outputs > 1) lines.unshift("# The first picture; the header Link names the others.");
  return `${lines.join("\n")}\n`;
}

function python(parameters, { needsKey, format }) {
  const fields = Object.entries(parameters).map(
    ([name, value]) => `        "${name}": ${pythonLiteral(value)},`,
  );
  return `import base64
import pathlib

import requests

photo = base64.b64encode(pathlib.Path("${PHOTO}").read_bytes()).decode()
answer = requests.post(
    ${JSON.stringify(address("?response_format=json"))},
${needsKey ? `    headers={"x-api-key": "${KEY}"},\n` : ""}    json={
        "main_face_image": photo,
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

function javascript(parameters, { needsKey, format }) {
  const fields = Object.entries(parameters).map(([name, value]) => `    ${name}: ${JSON.stringify(value)},`);
  return `import { readFile, writeFile } from "node:fs/promises";

const answer = await fetch(${JSON.stringify(address("?response_format=json"))}, {
  method: "POST",
  headers: { "content-type": "application/json"${needsKey ? `, "x-api-key": "${KEY}"` : ""} },
  body: JSON.stringify({
    main_face_image: await readFile("${PHOTO}", "base64"),
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

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

const pythonLiteral = (value) => ({ true: "True", false: "False" })[value] ?? JSON.stringify(value);
