package modulehost

import (
	"context"
	"fmt"
	"testing"

	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

// What the host adds to a call: deadline, order, checks, measurement. The goal is at most a fifth.
func BenchmarkCall(b *testing.B) {
	o := Options{Cgroup: ""}
	h, err := Start(context.Background(), o, []ModuleConfig{testConfig("good")})
	if err != nil {
		b.Fatal(err)
	}
	defer h.Close(context.Background())
	i := h.Isolators()[0]
	bare := i.m.current().calls.(isolatorCalls)
	request := func(n int) *isolatorv1.PrepareRequest { return prepareRequest(fmt.Sprint("c", n%100)) }
	b.Run("bare", func(b *testing.B) {
		for n := 0; b.Loop(); n++ {
			if _, err := bare.Prepare(b.Context(), request(n)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("host", func(b *testing.B) {
		for n := 0; b.Loop(); n++ {
			if _, err := i.Prepare(b.Context(), request(n)); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// Start and stop of a host with one module.
func BenchmarkStart(b *testing.B) {
	for b.Loop() {
		h, err := Start(context.Background(), Options{}, []ModuleConfig{testConfig("good")})
		if err != nil {
			b.Fatal(err)
		}
		if err := h.Close(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}
