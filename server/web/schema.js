// What this server takes and offers, read out of its OpenAPI document: the only place on the page where
// ranges and defaults come from.

const SUBMIT = "/v2/flux-pulid";
const EVENTS = "/v2/requests/{request_id}/events";
const FACES = "/v1/faces";
const IDENTITIES = "/v1/identities";

export function readSchema(openapi) {
  const body = openapi.paths[SUBMIT].post.requestBody.content["application/json"].schema;
  const parameters = parametersOf(body);
  const people = parameters.get("faces");
  const eventQueries = openapi.paths[EVENTS].get.parameters ?? [];
  return {
    parameters,
    person: people ? parametersOf(people.items) : new Map(), // of one of several people
    mostPeople: people?.most ?? 1,
    mostPhotos: parameters.get("face_images")?.most ?? 1,
    listsFaces: FACES in openapi.paths,
    makesIdentities: IDENTITIES in openapi.paths,
    sendsPreviews: eventQueries.some(({ name }) => name === "preview"),
  };
}

function parametersOf({ properties }) {
  return new Map(Object.entries(properties).map(([name, property]) => [name, parameterOf(name, property)]));
}

/** One parameter, with the null of an optional one taken out. */
function parameterOf(name, property) {
  const branch = (property.anyOf ?? []).find(({ type }) => type !== "null") ?? {};
  const rule = { ...property, ...branch };
  return {
    name,
    type: rule.type,
    choices: rule.enum ?? null,
    items: rule.items ?? null,
    most: rule.maxItems ?? null,
    minimum: rule.minimum ?? null,
    maximum: rule.maximum ?? null,
    initial: rule.default ?? null, // null: the server decides
    meaning: rule.description ?? "",
    example: rule.examples?.[0] ?? "",
  };
}

/** For example "a whole number from 256 to 1536". */
export function allowed({ type, choices, minimum, maximum }) {
  if (choices) return `one of ${choices.join(", ")}`;
  const noun = { integer: "a whole number", number: "a number", boolean: "true or false" }[type] ?? "text";
  return minimum === null || maximum === null ? noun : `${noun} from ${minimum} to ${maximum}`;
}
