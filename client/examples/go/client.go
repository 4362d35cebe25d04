// A client of Pagewire in Go: grpc-go, and what protoc makes of the contract.
//
//	build/client ADDRESS stream|reasoning|cancel|deadline|retry|errors|tools
//
// prints one line of JSON per event.
package main

import (
	"context"
	"encoding/json"
	"io"
	"log"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	_ "google.golang.org/grpc/health" // health checking, where the service config asks for it
	"google.golang.org/grpc/status"

	pb "pagewire/v1"
)

const weather = `{
  "type": "object",
  "properties": {"city": {"type": "string", "maxLength": 20}},
  "required": ["city"],
  "additionalProperties": false
}`

type fields map[string]interface{}

var out = json.NewEncoder(os.Stdout)

func say(event string, more fields) {
	line := fields{"event": event}
	for name, value := range more {
		line[name] = value
	}
	if err := out.Encode(line); err != nil {
		log.Fatal(err)
	}
}

// call is a call of a tool, joined from its pieces.
type call struct{ id, name, arguments string }

// show prints one event. Each event has one kind, and each part of a delta has one: a caller looks at that, never at
// the text.
func show(event *pb.StreamGenerateResponse, calls map[uint32]*call) {
	switch kind := event.Event.(type) {
	case *pb.StreamGenerateResponse_Started:
		say("started", fields{"prompt_tokens": kind.Started.PromptTokens})
	case *pb.StreamGenerateResponse_Delta:
		for _, part := range kind.Delta.Parts {
			showPart(part, calls)
		}
	case *pb.StreamGenerateResponse_Finished:
		say("finished", fields{"reason": kind.Finished.Reason.String()})
	case *pb.StreamGenerateResponse_Usage:
		say("usage", fields{"completion_tokens": kind.Usage.CompletionTokens})
	}
}

// showPart joins the pieces of a call by its index; only the piece that says so makes it whole.
func showPart(part *pb.Part, calls map[uint32]*call) {
	switch kind := part.Kind.(type) {
	case *pb.Part_Content:
		say("content", fields{"text": kind.Content})
	case *pb.Part_Reasoning:
		say("reasoning", fields{"text": kind.Reasoning})
	case *pb.Part_ToolCall:
		piece := kind.ToolCall
		whole, known := calls[piece.Index]
		if !known {
			whole = &call{id: piece.GetId(), name: piece.GetName()}
			calls[piece.Index] = whole
		}
		whole.arguments += piece.GetArguments()
		say("tool_call", fields{"index": piece.Index, "arguments": piece.GetArguments()})
		if piece.IsComplete {
			say("call", fields{"id": whole.id, "name": whole.name, "arguments": whole.arguments})
		}
	case *pb.Part_MalformedCall:
		say("malformed_call", fields{"text": kind.MalformedCall.Text, "reason": kind.MalformedCall.Reason})
	}
}

// names are those of the contract; grpc-go's own strings are written otherwise.
var names = map[codes.Code]string{
	codes.Canceled:          "CANCELLED",
	codes.InvalidArgument:   "INVALID_ARGUMENT",
	codes.DeadlineExceeded:  "DEADLINE_EXCEEDED",
	codes.NotFound:          "NOT_FOUND",
	codes.PermissionDenied:  "PERMISSION_DENIED",
	codes.ResourceExhausted: "RESOURCE_EXHAUSTED",
	codes.Unavailable:       "UNAVAILABLE",
	codes.Unauthenticated:   "UNAUTHENTICATED",
}

// showError prints a status, and the google.rpc details behind it: which field was wrong, or a reason that a program can
// read.
func showError(err error) {
	failed := status.Convert(err)
	said := fields{"code": names[failed.Code()], "message": failed.Message()}
	for _, detail := range failed.Details() {
		switch detail := detail.(type) {
		case *errdetails.BadRequest:
			var violations []fields
			for _, each := range detail.FieldViolations {
				violations = append(violations, fields{"field": each.Field, "description": each.Description})
			}
			said["violations"] = violations
		case *errdetails.ErrorInfo:
			said["reason"], said["domain"] = detail.Reason, detail.Domain
		}
	}
	say("error", said)
}

func number(value uint32) *uint32     { return &value }
func text(value string) *string       { return &value }
func flag(value bool) *bool           { return &value }
func float(value float32) *float32    { return &value }
func prompt(chat *pb.Chat) *pb.Prompt { return &pb.Prompt{Kind: &pb.Prompt_Chat{Chat: chat}} }

func question(content string) []*pb.ChatMessage {
	return []*pb.ChatMessage{{Role: pb.ChatRole_CHAT_ROLE_USER, Content: text(content)}}
}

func request(command string) *pb.Generation {
	generation := &pb.Generation{
		Prompt:   prompt(&pb.Chat{Messages: question("Why is the sky blue?")}),
		Sampling: &pb.Sampling{Temperature: float(0)},
		Stopping: &pb.Stopping{MaxTokens: number(24)},
	}
	switch command {
	case "reasoning":
		// Both are for models whose template has reasoning (GetModel's capabilities).
		generation.Prompt = prompt(&pb.Chat{
			Messages:           question("Why?"),
			TemplateArguments:  text(`{"enable_thinking": true}`),
			MaxReasoningTokens: number(12),
		})
	case "cancel", "deadline":
		generation.Stopping = &pb.Stopping{IgnoreEos: flag(true)} // an answer as long as the context
	case "errors":
		generation.Sampling.Temperature = float(1000)
	case "tools":
		generation.Prompt = prompt(&pb.Chat{
			Messages: question("What is the weather in Köln?"),
			Tools: []*pb.Tool{
				{Name: "get_weather", Description: text("The weather of a city"), Parameters: text(weather)},
			},
			ToolChoice:        &pb.ToolChoice{Kind: &pb.ToolChoice_Required{Required: &pb.RequiredToolChoice{}}},
			ParallelToolCalls: flag(false),
			// A model whose template shows how it writes calls needs no format; SmolLM2's shows none.
			Format: &pb.ChatFormat{ToolCalls: pb.ToolCallFormat_TOOL_CALL_FORMAT_QWEN3},
		})
		generation.Stopping.MaxTokens = number(200)
	}
	return generation
}

func stream(client pb.InferenceServiceClient, command string) error {
	deadline := 30 * time.Second
	if command == "deadline" {
		deadline = 300 * time.Millisecond
	}
	// Cancelling the context ends the call, and the server its generation; a caller that leaves early must do it.
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	events, err := client.StreamGenerate(ctx, &pb.StreamGenerateRequest{Generation: request(command)})
	if err != nil {
		return err
	}
	calls := map[uint32]*call{}
	for seen := 1; ; seen++ {
		event, err := events.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		show(event, calls)
		if command == "cancel" && seen == 4 {
			cancel()
		}
	}
}

func generate(client pb.InferenceServiceClient) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	answer, err := client.Generate(ctx, &pb.GenerateRequest{Generation: request("retry")})
	if err == nil {
		say("answer", fields{"text": answer.Outputs[0].Message.GetContent()})
	}
	return err
}

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: client ADDRESS COMMAND")
	}
	out.SetEscapeHTML(false)
	serviceConfig, err := os.ReadFile("../service_config.json")
	if err != nil {
		log.Fatal(err)
	}
	// The service config says what is tried again, and which server gets a call where an address has several.
	channel, err := grpc.Dial(os.Args[1], grpc.WithInsecure(), grpc.WithDefaultServiceConfig(string(serviceConfig)))
	if err != nil {
		log.Fatal(err)
	}
	defer channel.Close()
	client := pb.NewInferenceServiceClient(channel)
	if os.Args[2] == "retry" {
		err = generate(client)
	} else {
		err = stream(client, os.Args[2])
	}
	if err != nil {
		showError(err)
	}
}
