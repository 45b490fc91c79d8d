package main

import (
	"os"
	"testing"

	"github.com/mosaic-cluster/mosaic/sdk/kit"
	authenticatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/authenticator/v1"
)

// TestMain lets the test's own executable be the module when the kit starts it as one.
func TestMain(m *testing.M) {
	if os.Getenv("MOSAIC_MODULE") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func TestConformance(t *testing.T) {
	kit.Conform(t, kit.Program{Path: os.Args[0]}.Dial, kit.Core)
}

func TestOnlyTheTokenIsRecognised(t *testing.T) {
	m := newModule()
	take, errs := m.config.Check(`{"token":"s3cret","principal":"alice"}`)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	take()
	for header, want := range map[string]string{"Bearer s3cret": "alice", "Bearer other": "", "s3cret": "", "": ""} {
		r, err := m.Authenticate(t.Context(), &authenticatorv1.AuthenticateRequest{Headers: map[string]string{"Authorization": header}})
		if err != nil || r.GetPrincipal().GetValue() != want || want == "" && r.GetUnauthorized() == nil {
			t.Errorf("Authenticate(%q) = %v, %v; want the principal %q", header, r, err, want)
		}
	}
}
