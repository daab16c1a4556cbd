// Send one request: go run ./produce localhost:9092 xnli.requests
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/hamba/avro/v2"
	"github.com/hamba/avro/v2/soe"
	"github.com/twmb/franz-go/pkg/kgo"
)

func main() {
	schema, err := avro.ParseFiles("../../../schemas/inference-request.avsc")
	if err != nil {
		log.Fatal(err)
	}
	// Avro single-object encoding: no registry is needed.
	codec, err := soe.NewCodec(schema)
	if err != nil {
		log.Fatal(err)
	}
	value, err := codec.Encode(map[string]any{ // fields that are left out take their defaults
		"id":     "go-1",
		"text":   "The parcel arrived two days late.",
		"labels": []string{"delivery", "payment"},
	})
	if err != nil {
		log.Fatal(err)
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(os.Args[1]))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	record := &kgo.Record{Topic: os.Args[2], Key: []byte("go-1"), Value: value}
	if err := client.ProduceSync(context.Background(), record).FirstErr(); err != nil {
		log.Fatal(err)
	}
	fmt.Println("sent go-1")
}
