// Print results: go run ./consume localhost:9092 xnli.results 3
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"strconv"

	"github.com/hamba/avro/v2"
	"github.com/twmb/franz-go/pkg/kgo"
)

func main() {
	schema, err := avro.ParseFiles("../../../schemas/inference-result.avsc")
	if err != nil {
		log.Fatal(err)
	}
	client, err := kgo.NewClient(
		kgo.SeedBrokers(os.Args[1]),
		kgo.ConsumerGroup("example-go"),
		kgo.ConsumeTopics(os.Args[2]),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		// Without it, results of aborted transactions are seen too.
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
	)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	count, err := strconv.Atoi(os.Args[3])
	if err != nil {
		log.Fatal(err)
	}
	for seen := 0; seen < count; {
		fetches := client.PollFetches(context.Background())
		if err := fetches.Err(); err != nil {
			log.Fatal(err)
		}
		fetches.EachRecord(func(record *kgo.Record) {
			var result map[string]any
			// Avro single-object encoding: two bytes of marker, eight of the schema's fingerprint, the datum. The
			// fingerprint is not compared: hamba/avro computes another one of this schema than Avro's Java library.
			if len(record.Value) < 10 || record.Value[0] != 0xc3 || record.Value[1] != 0x01 {
				log.Fatalf("no single-object encoding at offset %d", record.Offset)
			}
			if err := avro.Unmarshal(schema, record.Value[10:], &result); err != nil {
				log.Fatal(err)
			}
			fmt.Printf("%s: %s\n", result["id"], described(result["outcome"].(map[string]any)))
			seen++
		})
	}
}

// A union is a map with one key: the name of the record, which says which outcome it is.
func described(union map[string]any) string {
	for branch, value := range union {
		outcome := value.(map[string]any)
		text := branch + ":"
		switch branch {
		case "xnli.Classification":
			for _, label := range outcome["labels"].([]any) {
				scored := label.(map[string]any)
				text += fmt.Sprintf(" %s %.2f", scored["label"], scored["score"])
			}
		case "xnli.Entailment":
			for _, judgement := range outcome["judgements"].([]any) {
				judged := judgement.(map[string]any)
				text += fmt.Sprintf(" %s %.2f", judged["hypothesis"], judged["entailment"])
			}
		default:
			text += fmt.Sprintf(" %d numbers", outcome["dimension"])
		}
		return text
	}
	return "nothing"
}
