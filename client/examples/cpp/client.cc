// A client of Pagewire in C++: grpc++, and what protoc makes of the contract.
//
//     build/client ADDRESS stream|reasoning|cancel|deadline|retry|errors|tools
//
// prints one line of JSON per event.

#include <chrono>
#include <fstream>
#include <iostream>
#include <map>
#include <sstream>
#include <string>

#include <google/rpc/error_details.pb.h>
#include <google/rpc/status.pb.h>
#include <grpcpp/grpcpp.h>
#include <nlohmann/json.hpp>

#include "pagewire/v1/inference.grpc.pb.h"

namespace pb = pagewire::v1;
using json = nlohmann::ordered_json;
using namespace std::chrono_literals;

namespace {

const json kWeather = {{"type", "object"},
                       {"properties", {{"city", {{"type", "string"}, {"maxLength", 20}}}}},
                       {"required", {"city"}},
                       {"additionalProperties", false}};

void Say(const std::string& event, const json& fields) {
  json line = {{"event", event}};
  line.update(fields);
  std::cout << line.dump() << std::endl;
}

// A deadline is a point in time: it counts for all tries of a call together.
std::chrono::system_clock::time_point In(std::chrono::milliseconds time) {
  return std::chrono::system_clock::now() + time;
}

// Pieces of calls, joined by their index.
using Calls = std::map<uint32_t, json>;

void ShowPart(const pb::Part& part, Calls& calls) {
  switch (part.kind_case()) {
    case pb::Part::kContent:
      return Say("content", {{"text", part.content()}});
    case pb::Part::kReasoning:
      return Say("reasoning", {{"text", part.reasoning()}});
    case pb::Part::kToolCall: {
      const pb::ToolCallPart& piece = part.tool_call();
      auto [found, is_new] = calls.try_emplace(piece.index());
      json& call = found->second;
      if (is_new) call = {{"id", piece.id()}, {"name", piece.name()}, {"arguments", ""}};
      call["arguments"] = call["arguments"].get<std::string>() + piece.arguments();
      Say("tool_call", {{"index", piece.index()}, {"arguments", piece.arguments()}});
      if (piece.is_complete()) Say("call", call);  // until then it may turn out to be malformed
      return;
    }
    case pb::Part::kMalformedCall:
      return Say("malformed_call",
                 {{"text", part.malformed_call().text()}, {"reason", part.malformed_call().reason()}});
    case pb::Part::KIND_NOT_SET:  // a kind of a later version
      return;
  }
}

// Each event has one kind, and each part of a delta has one: a caller looks at that, never at the text.
void Show(const pb::StreamGenerateResponse& event, Calls& calls) {
  switch (event.event_case()) {
    case pb::StreamGenerateResponse::kStarted:
      return Say("started", {{"prompt_tokens", event.started().prompt_tokens()}});
    case pb::StreamGenerateResponse::kDelta:
      for (const pb::Part& part : event.delta().parts()) ShowPart(part, calls);
      return;
    case pb::StreamGenerateResponse::kFinished:
      return Say("finished", {{"reason", pb::FinishReason_Name(event.finished().reason())}});
    case pb::StreamGenerateResponse::kUsage:
      return Say("usage", {{"completion_tokens", event.usage().completion_tokens()}});
    default:
      return;
  }
}

std::string CodeName(grpc::StatusCode code) {
  switch (code) {
    case grpc::StatusCode::CANCELLED: return "CANCELLED";
    case grpc::StatusCode::INVALID_ARGUMENT: return "INVALID_ARGUMENT";
    case grpc::StatusCode::DEADLINE_EXCEEDED: return "DEADLINE_EXCEEDED";
    case grpc::StatusCode::NOT_FOUND: return "NOT_FOUND";
    case grpc::StatusCode::PERMISSION_DENIED: return "PERMISSION_DENIED";
    case grpc::StatusCode::RESOURCE_EXHAUSTED: return "RESOURCE_EXHAUSTED";
    case grpc::StatusCode::UNAVAILABLE: return "UNAVAILABLE";
    case grpc::StatusCode::UNAUTHENTICATED: return "UNAUTHENTICATED";
    default: return std::to_string(code);
  }
}

// A status, and the google.rpc details behind it: which field was wrong, or a reason that a program can read.
void ShowError(const grpc::Status& status) {
  json fields = {{"code", CodeName(status.error_code())}, {"message", status.error_message()}};
  google::rpc::Status rich;  // empty where the status is the client's own, as of a deadline
  rich.ParseFromString(status.error_details());
  for (const google::protobuf::Any& packed : rich.details()) {
    google::rpc::BadRequest refused;
    google::rpc::ErrorInfo info;
    if (packed.UnpackTo(&refused)) {
      for (const auto& each : refused.field_violations()) {
        fields["violations"].push_back({{"field", each.field()}, {"description", each.description()}});
      }
    } else if (packed.UnpackTo(&info)) {
      fields["reason"] = info.reason();
      fields["domain"] = info.domain();
    }
  }
  Say("error", fields);
}

pb::Chat* Ask(pb::Generation& generation, const std::string& text) {
  pb::Chat* chat = generation.mutable_prompt()->mutable_chat();
  chat->clear_messages();
  pb::ChatMessage* message = chat->add_messages();
  message->set_role(pb::CHAT_ROLE_USER);
  message->set_content(text);
  return chat;
}

pb::Generation Request(const std::string& command) {
  pb::Generation generation;
  pb::Chat* chat = Ask(generation, "Why is the sky blue?");
  generation.mutable_sampling()->set_temperature(command == "errors" ? 1000 : 0);
  pb::Stopping* stopping = generation.mutable_stopping();
  stopping->set_max_tokens(24);
  if (command == "reasoning") {
    // Both are for models whose template has reasoning (GetModel's capabilities).
    chat = Ask(generation, "Why?");
    chat->set_template_arguments(R"({"enable_thinking": true})");
    chat->set_max_reasoning_tokens(12);
  } else if (command == "cancel" || command == "deadline") {
    stopping->clear_max_tokens();  // an answer as long as the context
    stopping->set_ignore_eos(true);
  } else if (command == "tools") {
    chat = Ask(generation, "What is the weather in Köln?");
    pb::Tool* tool = chat->add_tools();
    tool->set_name("get_weather");
    tool->set_description("The weather of a city");
    tool->set_parameters(kWeather.dump());
    chat->mutable_tool_choice()->mutable_required();
    chat->set_parallel_tool_calls(false);
    // A model whose template shows how it writes calls needs no format; SmolLM2's shows none.
    chat->mutable_format()->set_tool_calls(pb::TOOL_CALL_FORMAT_QWEN3);
    stopping->set_max_tokens(200);
  }
  return generation;
}

grpc::Status Generate(pb::InferenceService::Stub& stub, const pb::Generation& generation) {
  grpc::ClientContext context;
  context.set_deadline(In(30s));
  pb::GenerateRequest request;
  *request.mutable_generation() = generation;
  pb::GenerateResponse answer;
  grpc::Status status = stub.Generate(&context, request, &answer);
  if (status.ok()) Say("answer", {{"text", answer.outputs(0).message().content()}});
  return status;
}

grpc::Status Stream(pb::InferenceService::Stub& stub, const pb::Generation& generation, const std::string& command) {
  grpc::ClientContext context;
  context.set_deadline(command == "deadline" ? In(300ms) : In(30s));
  pb::StreamGenerateRequest request;
  *request.mutable_generation() = generation;
  auto stream = stub.StreamGenerate(&context, request);
  pb::StreamGenerateResponse event;
  Calls calls;
  for (int seen = 1; stream->Read(&event); ++seen) {
    Show(event, calls);
    if (command == "cancel" && seen == 4) context.TryCancel();  // the server ends the generation and frees its memory
  }
  return stream->Finish();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: client ADDRESS COMMAND" << std::endl;
    return 2;
  }
  const std::string command = argv[2];
  // The service config says what is tried again, and which server gets a call where an address has several.
  std::stringstream service_config;
  service_config << std::ifstream(SERVICE_CONFIG).rdbuf();
  grpc::ChannelArguments arguments;
  arguments.SetServiceConfigJSON(service_config.str());
  auto channel = grpc::CreateCustomChannel(argv[1], grpc::InsecureChannelCredentials(), arguments);
  auto stub = pb::InferenceService::NewStub(channel);

  const pb::Generation generation = Request(command);
  grpc::Status status = command == "retry" ? Generate(*stub, generation) : Stream(*stub, generation, command);
  if (!status.ok()) ShowError(status);
}
