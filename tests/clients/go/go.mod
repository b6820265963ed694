module mneme.test/client

go 1.23

require (
	google.golang.org/grpc v1.68.1
	google.golang.org/protobuf v1.36.11
)
