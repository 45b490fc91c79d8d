package main

import (
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mosaic-cluster/mosaic/sdk/kit"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	secretresolverv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/secretresolver/v1"
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

func TestSecretsComeFromTheFolderAndNowhereElse(t *testing.T) {
	parent := t.TempDir()
	folder := filepath.Join(parent, "secrets")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{filepath.Join(folder, "db"): "pa55", filepath.Join(parent, "outside"): "x"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m := newModule()
	m.config.Get().Folder = folder
	for name, want := range map[string]codes.Code{
		"db": codes.OK, "none": codes.NotFound, "../outside": codes.InvalidArgument, filepath.Join(parent, "outside"): codes.InvalidArgument,
	} {
		r, err := m.Resolve(t.Context(), &secretresolverv1.ResolveRequest{Secret: &mesosv1.Secret{Reference: &mesosv1.Secret_Reference{Name: &name}}})
		if status.Code(err) != want || want == codes.OK && string(r.GetData()) != "pa55" {
			t.Errorf("Resolve(%q) = %v, %v; want %s", name, r, err, want)
		}
	}
}
