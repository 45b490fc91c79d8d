package provisioner

import (
	"archive/tar"
	"fmt"
	"math/rand/v2"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// bigImage is some 90 MB compressed in four layers, of files as they are in distributions: half of it noise, half text.
func bigImage(b *testing.B) v1.Image {
	b.Helper()
	random := rand.New(rand.NewPCG(1, 2))
	var layers []v1.Layer
	for n := range 4 {
		files := []file{{name: fmt.Sprintf("usr%d/", n), kind: tar.TypeDir, mode: 0o755}}
		for f := range 200 {
			body := make([]byte, 128<<10)
			for i := range body {
				if i%2 == 0 {
					body[i] = byte(random.Uint32())
				} else {
					body[i] = "the quick brown fox"[i%19]
				}
			}
			files = append(files, file{name: fmt.Sprintf("usr%d/f%d", n, f), body: string(body)})
		}
		layers = append(layers, layerOf(b, files...))
	}
	return imageWith(b, layers...)
}

func BenchmarkPullAndUnpack(b *testing.B) {
	d := newDepot(b)
	img := bigImage(b)
	image := d.push(b, "big:1", img)
	layers, err := img.Layers()
	if err != nil {
		b.Fatal(err)
	}
	var size int64
	for _, l := range layers {
		n, err := l.Size()
		if err != nil {
			b.Fatal(err)
		}
		size += n
	}
	b.SetBytes(size)
	for b.Loop() {
		b.StopTimer()
		p, err := New(Config{Dir: b.TempDir()})
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := p.Pull(b.Context(), image, false); err != nil {
			b.Fatalf("Pull: %v", err)
		}
		b.StopTimer()
		if err := p.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkProvision is what a container costs whose image is there: made and removed.
func BenchmarkProvision(b *testing.B) {
	d := newDepot(b)
	image := docker(d.push(b, "small:1", simpleImage(b, "x")))
	p, err := New(Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	if err := p.Pull(b.Context(), image.GetDocker().GetName(), false); err != nil {
		b.Fatalf("Pull: %v", err)
	}
	for n := 0; b.Loop(); n++ {
		id := fmt.Sprint(n)
		if _, _, err := p.ProvisionImage(b.Context(), id, image); err != nil {
			b.Fatalf("ProvisionImage: %v", err)
		}
		b.StopTimer()
		if err := p.Remove(b.Context(), id); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
