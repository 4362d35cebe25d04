// A client of Pagewire for Node: @grpc/grpc-js, and the contract's .proto files read when it starts.
//
//     node client.js ADDRESS stream|reasoning|cancel|deadline|retry|errors|tools|balance
//
// prints one line of JSON per event.

import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import grpc from '@grpc/grpc-js';
import protoLoader from '@grpc/proto-loader';
import protobuf from 'protobufjs';

const path = (relative) => fileURLToPath(new URL(relative, import.meta.url));
const SERVICE_CONFIG = readFileSync(path('../service_config.json'), 'utf8');
const DEADLINE_MS = 30_000;

const { pagewire } = grpc.loadPackageDefinition(
  protoLoader.loadSync('pagewire/v1/inference.proto', {
    includeDirs: [path('../../../proto')],
    keepCase: true, // names as the contract has them
    enums: String,
    longs: String, // a uint64, such as a seed, does not fit into a number
    oneofs: true, // a oneof's name says which of its fields is set
    defaults: true, // a field without presence is there, and a list may be empty
  }),
);

// What this server's statuses carry of google.rpc; the npm package google-proto-files has them all.
const rpc = protobuf.parse(`
  syntax = "proto3";
  package google.rpc;
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
  message BadRequest {
    message FieldViolation { string field = 1; string description = 2; }
    repeated FieldViolation field_violations = 1;
  }`, { keepCase: true }).root.lookup('google.rpc');

const WEATHER = {
  name: 'get_weather',
  description: 'The weather of a city',
  parameters: JSON.stringify({
    type: 'object',
    properties: { city: { type: 'string', maxLength: 20 } },
    required: ['city'],
    additionalProperties: false,
  }),
};

const say = (event, fields) => console.log(JSON.stringify({ event, ...fields }));

const chat = (content, fields = {}) => ({ chat: { messages: [{ role: 'CHAT_ROLE_USER', content }], ...fields } });

// Each event has one kind, and each part of a delta has one: a caller looks at that, never at the text.
function show(event, calls) {
  switch (event.event) {
    case 'started':
      return say('started', { prompt_tokens: event.started.prompt_tokens });
    case 'delta':
      return event.delta.parts.forEach((part) => showPart(part, calls));
    case 'finished':
      return say('finished', { reason: event.finished.reason });
    case 'usage':
      return say('usage', { completion_tokens: event.usage.completion_tokens });
  }
}

// Pieces of a call are joined by its index; only the piece that says so makes it whole.
function showPart(part, calls) {
  switch (part.kind) {
    case 'content':
      return say('content', { text: part.content });
    case 'reasoning':
      return say('reasoning', { text: part.reasoning });
    case 'tool_call': {
      const { index, id, name, arguments: piece = '', is_complete: isComplete } = part.tool_call;
      if (!calls.has(index)) calls.set(index, { id, name, arguments: '' });
      const call = calls.get(index);
      call.arguments += piece;
      say('tool_call', { index, arguments: piece });
      return isComplete && say('call', call);
    }
    case 'malformed_call':
      return say('malformed_call', { text: part.malformed_call.text, reason: part.malformed_call.reason });
  }
}

// A status, and the google.rpc details behind it: which field was wrong, or a reason that a program can read.
function showError(error) {
  const details = {};
  const [packed] = error.metadata.get('grpc-status-details-bin'); // none where the status is the client's own
  for (const { type_url: type, value } of packed ? rpc.Status.decode(packed).details : []) {
    if (type.endsWith('/google.rpc.BadRequest')) {
      details.violations = rpc.BadRequest.decode(value).field_violations.map(
        ({ field, description }) => ({ field, description }));
    } else if (type.endsWith('/google.rpc.ErrorInfo')) {
      const { reason, domain } = rpc.ErrorInfo.decode(value);
      Object.assign(details, { reason, domain });
    }
  }
  say('error', { code: grpc.status[error.code], message: error.details, ...details });
}

function request(command) {
  const generation = {
    prompt: chat('Why is the sky blue?'),
    sampling: { temperature: 0 },
    stopping: { max_tokens: 24 },
  };
  switch (command) {
    case 'reasoning': {
      // Both are for models whose template has reasoning (GetModel's capabilities).
      const template_arguments = JSON.stringify({ enable_thinking: true });
      generation.prompt = chat('Why?', { template_arguments, max_reasoning_tokens: 12 });
      break;
    }
    case 'cancel':
    case 'deadline':
      generation.stopping = { ignore_eos: true }; // an answer as long as the context
      break;
    case 'errors':
      generation.sampling.temperature = 1000;
      break;
    case 'tools':
      generation.prompt = chat('What is the weather in Köln?', {
        tools: [WEATHER],
        tool_choice: { required: {} },
        parallel_tool_calls: false,
        // A model whose template shows how it writes calls needs no format; SmolLM2's shows none.
        format: { tool_calls: 'TOOL_CALL_FORMAT_QWEN3' },
      });
      generation.stopping.max_tokens = 200;
      break;
    case 'balance':
      generation.prompt = { token_ids: { ids: [1, 2, 3] } };
      break;
  }
  return { generation };
}

async function stream(client, command) {
  const deadline = Date.now() + (command === 'deadline' ? 300 : DEADLINE_MS);
  const events = client.streamGenerate(request(command), { deadline });
  const calls = new Map();
  let seen = 0;
  // Reading by iteration holds the server back where this side is slow.
  for await (const event of events) {
    show(event, calls);
    seen += 1;
    if (command === 'cancel' && seen === 4) events.cancel(); // the server ends the generation and frees its memory
  }
}

const generate = (client, command) => new Promise((resolve, reject) => {
  const options = { deadline: Date.now() + DEADLINE_MS };
  client.generate(request(command), options, (error, answer) => (error ? reject(error) : resolve(answer)));
});

async function main(address, command) {
  // The service config says what is tried again, and which server gets a call where an address has several.
  const client = new pagewire.v1.InferenceService(address, grpc.credentials.createInsecure(), {
    'grpc.service_config': SERVICE_CONFIG,
  });
  try {
    if (command === 'retry') {
      say('answer', { text: (await generate(client, command)).outputs[0].message.content });
    } else if (command === 'balance') {
      for await (const _ of createInterface(process.stdin)) { // a call for each line
        say('answer', { tokens: (await generate(client, command)).outputs[0].tokens.length });
      }
    } else {
      await stream(client, command);
    }
  } catch (error) {
    showError(error);
  } finally {
    client.close();
  }
}

await main(...process.argv.slice(2));
