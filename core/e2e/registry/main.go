// Command registry serves container images on loopback, for the demo and for tests that want a registry: one image named
// web, made here of a static busybox, that serves a page on port 80.
package main

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func main() {
	busybox := flag.String("busybox", "/bin/busybox", "static busybox to put into the image")
	listen := flag.String("listen", "127.0.0.1:0", "address to listen on, HOST:PORT")
	page := flag.String("page", "hello from a container\n", "what the image's web server answers")
	ballast := flag.Int("ballast", 8, "MiB of further layers, so that a pull takes a moment")
	flag.Parse()
	if err := run(*busybox, *listen, *page, *ballast); err != nil {
		fmt.Fprintln(os.Stderr, "registry:", err)
		os.Exit(1)
	}
}

func run(busybox, listen, page string, ballast int) error {
	program, err := os.ReadFile(busybox)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() {
		served <- http.Serve(l, registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	}()
	img, err := image(program, page, ballast)
	if err != nil {
		return fmt.Errorf("make the image: %w", err)
	}
	ref, err := name.ParseReference(l.Addr().String()+"/web:latest", name.Insecure)
	if err != nil {
		return err
	}
	if err := remote.Write(ref, img); err != nil {
		return fmt.Errorf("push the image: %w", err)
	}
	fmt.Println(ref.Name())
	return <-served
}

// file is one entry of a layer; without data and with a link it is a link.
type file struct {
	name, link string
	mode       int64
	data       []byte
}

func image(busybox []byte, page string, ballast int) (v1.Image, error) {
	base := []file{{name: "bin/busybox", mode: 0o755, data: busybox}}
	for _, applet := range []string{"sh", "httpd", "cat", "ls", "echo", "sleep", "wget", "ip", "hostname", "id"} {
		base = append(base, file{name: "bin/" + applet, link: "busybox"})
	}
	for _, dir := range []string{"etc", "proc", "sys", "dev", "tmp", "www"} {
		base = append(base, file{name: dir + "/", mode: 0o755})
	}
	layers := [][]file{base}
	for i := range ballast / 4 {
		data := make([]byte, 4<<20)
		if _, err := rand.Read(data); err != nil { // which does not compress
			return nil, err
		}
		layers = append(layers, []file{{name: fmt.Sprintf("usr/share/ballast-%d", i), mode: 0o644, data: data}})
	}
	layers = append(layers, []file{{name: "www/index.html", mode: 0o644, data: []byte(page)}})
	img := v1.Image(empty.Image)
	for _, files := range layers {
		data, err := layer(files)
		if err != nil {
			return nil, err
		}
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
		if err != nil {
			return nil, err
		}
		if img, err = mutate.AppendLayers(img, l); err != nil {
			return nil, err
		}
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", "amd64"
	cfg.Config.Entrypoint = []string{"/bin/httpd", "-f", "-h", "/www"}
	cfg.Config.Cmd = []string{"-p", "80"}
	cfg.Config.Env = []string{"PATH=/bin", "SERVED_BY=busybox"}
	return mutate.ConfigFile(img, cfg)
}

func layer(files []file) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.data)), Typeflag: tar.TypeReg}
		switch {
		case f.link != "":
			h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.link, 0o777
		case f.name[len(f.name)-1] == '/':
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), w.Close()
}
