// A client generated from protos/ by Go's own tools: prints the answer to one question.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	gatewayv1 "mneme.test/client/mneme/gateway/v1"
	inferencev1 "mneme.test/client/mneme/inference/v1"
)

func main() {
	connection, err := grpc.NewClient(os.Args[1],
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	stream, err := gatewayv1.NewChatServiceClient(connection).Chat(context.Background(),
		&gatewayv1.ChatRequest{
			Model: os.Args[2],
			Messages: []*inferencev1.Message{
				{Role: "user", Content: "What is the capital of France?"},
			},
			Sampling: &inferencev1.Sampling{
				Temperature: proto.Float32(0), MaxTokens: proto.Int32(16),
			},
		})
	if err != nil {
		log.Fatal(err)
	}
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			log.Fatal(err)
		}
		fmt.Print(event.GetTextDelta())
	}
}
