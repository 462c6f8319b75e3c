/* One client's calls against a running server: `node call.js axios` or `node call.js fetch`.

   Reads {url, key, body} as JSON from standard input, calls v1 (bytes, JSON), v2 and one mistake the
   way that client's users write it, and prints what they would have in hand as one line of JSON. */

import { text } from "node:stream/consumers";

import axios from "axios";

const POLL_MS = 100;
const POLLS = 300;

const withAxios = {
  async post(url, key, body, as) {
    const headers = { "x-api-key": key };
    const reply = await axios.post(url, body, { headers, responseType: as, validateStatus: null });
    return { status: reply.status, type: reply.headers["content-type"], headers: reply.headers, data: reply.data };
  },
  async get(url, key, as) {
    const headers = key === null ? {} : { "x-api-key": key };
    const reply = await axios.get(url, { headers, responseType: as, validateStatus: null });
    return { status: reply.status, type: reply.headers["content-type"], headers: reply.headers, data: reply.data };
  },
};

const withFetch = {
  async post(url, key, body, as) {
    const headers = { "x-api-key": key, "Content-Type": "application/json" };
    return read(await fetch(url, { method: "POST", headers, body: JSON.stringify(body) }), as);
  },
  async get(url, key, as) {
    return read(await fetch(url, { headers: key === null ? {} : { "x-api-key": key } }), as);
  },
};

async function read(reply, as) {
  const data = as === "json" ? await reply.json() : await reply.arrayBuffer();
  return { status: reply.status, type: reply.headers.get("content-type"), headers: Object.fromEntries(reply.headers), data };
}

async function finished(client, job, key) {
  for (let poll = 0; poll < POLLS; poll += 1) {
    const { data } = await client.get(job.status_url, key, "json");
    if (data.status === "COMPLETED" || data.status === "FAILED") {
      return data;
    }
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
  throw new Error(`job ${job.request_id} did not end`);
}

function picture({ status, type, headers, data }) {
  return { status, type, credits: headers["x-remaining-credits"], base64: Buffer.from(data).toString("base64") };
}

async function callEverything(client, { url, key, body }) {
  const bytes = picture(await client.post(`${url}/v1/flux-pulid`, key, body, "arraybuffer"));
  const json = (await client.post(`${url}/json/v1/flux-pulid`, key, body, "json")).data;
  const job = (await client.post(`${url}/v2/flux-pulid`, key, body, "json")).data;
  const status = await finished(client, job, key);
  const result = (await client.get(job.response_url, key, "json")).data;
  const download = picture(await client.get(result.output, null, "arraybuffer"));
  const mistake = await client.post(`${url}/v1/flux-pulid`, key, { ...body, num_steps: 21 }, "json");
  return { bytes, json, status, result, download, mistake: { status: mistake.status, data: mistake.data } };
}

const clients = { axios: withAxios, fetch: withFetch };
const input = JSON.parse(await text(process.stdin));
console.log(JSON.stringify(await callEverything(clients[process.argv[2]], input)));
