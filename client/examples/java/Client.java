// A client of Pagewire in Java: grpc-java, and what protoc makes of the contract.
//
//     java @build/options Client ADDRESS stream|reasoning|cancel|deadline|retry|errors|tools
//
// prints one line of JSON per event.

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.reflect.TypeToken;
import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import io.grpc.Context;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CancellationException;
import java.util.concurrent.TimeUnit;
import pagewire.v1.GenerationOuterClass.Chat;
import pagewire.v1.GenerationOuterClass.ChatFormat;
import pagewire.v1.GenerationOuterClass.ChatMessage;
import pagewire.v1.GenerationOuterClass.ChatRole;
import pagewire.v1.GenerationOuterClass.Generation;
import pagewire.v1.GenerationOuterClass.Part;
import pagewire.v1.GenerationOuterClass.Prompt;
import pagewire.v1.GenerationOuterClass.RequiredToolChoice;
import pagewire.v1.GenerationOuterClass.Sampling;
import pagewire.v1.GenerationOuterClass.Stopping;
import pagewire.v1.GenerationOuterClass.Tool;
import pagewire.v1.GenerationOuterClass.ToolCallFormat;
import pagewire.v1.GenerationOuterClass.ToolCallPart;
import pagewire.v1.GenerationOuterClass.ToolChoice;
import pagewire.v1.Inference.GenerateRequest;
import pagewire.v1.Inference.StreamGenerateRequest;
import pagewire.v1.Inference.StreamGenerateResponse;
import pagewire.v1.InferenceServiceGrpc;
import pagewire.v1.InferenceServiceGrpc.InferenceServiceBlockingStub;

public final class Client {
  private static final Gson GSON = new GsonBuilder().disableHtmlEscaping().create();
  private static final PrintStream OUT = new PrintStream(System.out, true, StandardCharsets.UTF_8);
  private static final String WEATHER =
      GSON.toJson(
          Map.of(
              "type", "object",
              "properties", Map.of("city", Map.of("type", "string", "maxLength", 20)),
              "required", List.of("city"),
              "additionalProperties", false));

  /** A call of a tool, joined from its pieces. */
  private static final class Call {
    final String id;
    final String name;
    final StringBuilder arguments = new StringBuilder();

    Call(ToolCallPart first) {
      id = first.getId();
      name = first.getName();
    }
  }

  private static void say(String event, Object... fields) {
    Map<String, Object> line = new LinkedHashMap<>();
    line.put("event", event);
    for (int i = 0; i < fields.length; i += 2) {
      line.put((String) fields[i], fields[i + 1]);
    }
    OUT.println(GSON.toJson(line));
  }

  /** Each event has one kind, and each part of a delta has one: a caller looks at that, never at the text. */
  private static void show(StreamGenerateResponse event, Map<Integer, Call> calls) {
    switch (event.getEventCase()) {
      case STARTED:
        say("started", "prompt_tokens", event.getStarted().getPromptTokens());
        break;
      case DELTA:
        event.getDelta().getPartsList().forEach(part -> show(part, calls));
        break;
      case FINISHED:
        say("finished", "reason", event.getFinished().getReason().name());
        break;
      case USAGE:
        say("usage", "completion_tokens", event.getUsage().getCompletionTokens());
        break;
      default: // a kind of a later version
    }
  }

  /** Pieces of a call are joined by its index; only the piece that says so makes it whole. */
  private static void show(Part part, Map<Integer, Call> calls) {
    switch (part.getKindCase()) {
      case CONTENT:
        say("content", "text", part.getContent());
        break;
      case REASONING:
        say("reasoning", "text", part.getReasoning());
        break;
      case TOOL_CALL:
        ToolCallPart piece = part.getToolCall();
        Call call = calls.computeIfAbsent(piece.getIndex(), index -> new Call(piece));
        call.arguments.append(piece.getArguments());
        say("tool_call", "index", piece.getIndex(), "arguments", piece.getArguments());
        if (piece.getIsComplete()) {
          say("call", "id", call.id, "name", call.name, "arguments", call.arguments.toString());
        }
        break;
      case MALFORMED_CALL:
        say("malformed_call", "text", part.getMalformedCall().getText(), "reason", part.getMalformedCall().getReason());
        break;
      default:
    }
  }

  /** A status, and the google.rpc details behind it: which field was wrong, or a reason that a program can read. */
  private static void show(StatusRuntimeException error) throws InvalidProtocolBufferException {
    Status status = error.getStatus();
    List<Object> fields = new ArrayList<>();
    fields.addAll(List.of("code", status.getCode().name()));
    fields.addAll(List.of("message", status.getDescription() == null ? "" : status.getDescription()));
    com.google.rpc.Status rich = StatusProto.fromThrowable(error); // without details where it is the client's own
    for (Any packed : rich == null ? List.<Any>of() : rich.getDetailsList()) {
      if (packed.is(BadRequest.class)) {
        List<Map<String, String>> violations = new ArrayList<>();
        for (BadRequest.FieldViolation each : packed.unpack(BadRequest.class).getFieldViolationsList()) {
          violations.add(Map.of("field", each.getField(), "description", each.getDescription()));
        }
        fields.addAll(List.of("violations", violations));
      } else if (packed.is(ErrorInfo.class)) {
        ErrorInfo info = packed.unpack(ErrorInfo.class);
        fields.addAll(List.of("reason", info.getReason(), "domain", info.getDomain()));
      }
    }
    say("error", fields.toArray());
  }

  private static Chat.Builder chat(String question) {
    return Chat.newBuilder()
        .addMessages(ChatMessage.newBuilder().setRole(ChatRole.CHAT_ROLE_USER).setContent(question));
  }

  private static Generation request(String command) {
    Chat.Builder chat = chat("Why is the sky blue?");
    Sampling.Builder sampling = Sampling.newBuilder().setTemperature(command.equals("errors") ? 1000 : 0);
    Stopping.Builder stopping = Stopping.newBuilder().setMaxTokens(24);
    switch (command) {
      case "reasoning":
        // Both are for models whose template has reasoning (GetModel's capabilities).
        chat = chat("Why?").setTemplateArguments("{\"enable_thinking\": true}").setMaxReasoningTokens(12);
        break;
      case "cancel":
      case "deadline":
        stopping = Stopping.newBuilder().setIgnoreEos(true); // an answer as long as the context
        break;
      case "tools":
        Tool.Builder weather =
            Tool.newBuilder().setName("get_weather").setDescription("The weather of a city").setParameters(WEATHER);
        chat =
            chat("What is the weather in Köln?")
                .addTools(weather)
                .setToolChoice(ToolChoice.newBuilder().setRequired(RequiredToolChoice.getDefaultInstance()))
                .setParallelToolCalls(false)
                // A model whose template shows how it writes calls needs no format; SmolLM2's shows none.
                .setFormat(ChatFormat.newBuilder().setToolCalls(ToolCallFormat.TOOL_CALL_FORMAT_QWEN3));
        stopping.setMaxTokens(200);
        break;
      default:
    }
    return Generation.newBuilder()
        .setPrompt(Prompt.newBuilder().setChat(chat))
        .setSampling(sampling)
        .setStopping(stopping)
        .build();
  }

  private static void stream(InferenceServiceBlockingStub stub, String command) {
    // Cancelling the context ends the call, and the server its generation.
    Context.CancellableContext context = Context.current().withCancellation();
    context.run(
        () -> {
          Iterator<StreamGenerateResponse> events =
              stub.withDeadlineAfter(command.equals("deadline") ? 300 : 30_000, TimeUnit.MILLISECONDS)
                  .streamGenerate(StreamGenerateRequest.newBuilder().setGeneration(request(command)).build());
          Map<Integer, Call> calls = new HashMap<>();
          for (int seen = 1; events.hasNext(); seen++) {
            show(events.next(), calls);
            if (command.equals("cancel") && seen == 4) {
              context.cancel(new CancellationException("enough"));
            }
          }
        });
  }

  private static void generate(InferenceServiceBlockingStub stub) {
    GenerateRequest request = GenerateRequest.newBuilder().setGeneration(request("retry")).build();
    say(
        "answer",
        "text",
        stub.withDeadlineAfter(30, TimeUnit.SECONDS).generate(request).getOutputs(0).getMessage().getContent());
  }

  public static void main(String[] arguments) throws Exception {
    String address = arguments[0];
    String command = arguments[1];
    // The service config says what is tried again, and which server gets a call where an address has several.
    Map<String, ?> serviceConfig =
        GSON.fromJson(
            Files.readString(Path.of("../service_config.json")), new TypeToken<Map<String, ?>>() {}.getType());
    ManagedChannel channel =
        Grpc.newChannelBuilder(address, InsecureChannelCredentials.create())
            .defaultServiceConfig(serviceConfig)
            .enableRetry()
            .build();
    try {
      InferenceServiceBlockingStub stub = InferenceServiceGrpc.newBlockingStub(channel);
      if (command.equals("retry")) {
        generate(stub);
      } else {
        stream(stub, command);
      }
    } catch (StatusRuntimeException error) {
      show(error);
    } finally {
      channel.shutdownNow().awaitTermination(5, TimeUnit.SECONDS);
    }
  }
}
