// The service's API: models, and answers as they are written.

// A failure in words. status 0 = no answer came; retryAfter in seconds, null where the service names none.
export class ApiProblem extends Error {
  constructor(status, message, code = null, retryAfter = null) {
    super(message);
    Object.assign(this, { status, code, retryAfter });
  }
}

// The payloads of a stream of server-sent events. Chunks may end anywhere, also inside a character.
export async function* eventData(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
      // a lone \r at the end may be half of \r\n: it waits for the next chunk
      const lines = rest.split(done ? /\r\n|\n|\r/ : /\r\n|\n|\r(?!$)/);
      rest = done ? "" : lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
      if (done) {
        if (data.length) yield data.join("\n");
        return;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function request(path, key, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiProblem(0, "The service cannot be reached.");
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}

async function problemOf(response) {
  const seconds = Number.parseFloat(response.headers.get("Retry-After"));
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // a proxy's page: the status has to do
  }
  const message = error.message || `The service answered ${response.status} ${response.statusText}.`;
  return new ApiProblem(response.status, message, error.code ?? null, Number.isFinite(seconds) ? seconds : null);
}

// [{id, max_model_len, parameters, versions, chat}]
export async function listModels(key) {
  return (await (await request("v1/models", key)).json()).data;
}

export async function serviceVersion() {
  return (await (await request("version", null)).json()).version;
}

// The pieces of an answer: {text, tokens, finish, usage}, each where it is known; tokens as [[text, logprob, [[text,
// logprob]]]]. chat = messages in, else a prompt.
export async function* answer(body, chat, key, signal) {
  const response = await request(chat ? "v1/chat/completions" : "v1/completions", key, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  let finished = false;
  for await (const data of eventData(response.body)) {
    if (data === "[DONE]") return;
    let chunk;
    try {
      chunk = JSON.parse(data);
    } catch {
      throw new ApiProblem(502, "The service sent something that is not JSON.");
    }
    if (chunk.error) {
      throw new ApiProblem(chunk.error.status ?? 500, chunk.error.message ?? "The answer failed.", chunk.error.code);
    }
    const choice = chunk.choices?.[0];
    finished ||= choice?.finish_reason != null;
    yield {
      text: (chat ? choice?.delta?.content : choice?.text) ?? "",
      tokens: choice?.logprobs ? tokensOf(choice.logprobs, chat) : [],
      finish: choice?.finish_reason ?? null,
      usage: chunk.usage ?? null,
    };
  }
  if (!finished) throw new ApiProblem(0, "The connection ended before the answer did.");
}

function tokensOf(logprobs, chat) {
  if (chat) {
    const alternatives = (entry) => (entry.top_logprobs ?? []).map((top) => [top.token, top.logprob]);
    return (logprobs.content ?? []).map((entry) => [entry.token, entry.logprob, alternatives(entry)]);
  }
  const tops = logprobs.top_logprobs ?? [];
  return (logprobs.tokens ?? []).map((token, i) => [token, logprobs.token_logprobs[i], Object.entries(tops[i] ?? {})]);
}
