// Command registry serves container images on loopback, for the demo and for tests that want a registry: one image named
// web, made here of a static busybox, that serves a page on port 80. The same image is there as forged, where layers have
// another content than their digests say, and as truncated, where they break off; these are for tests of who pulls them.
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
	"net/http/httptest"
	"os"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
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
	user := flag.String("user", "", "let in only this user, by basic authentication; empty is everybody")
	password := flag.String("password", "", "password of -user")
	flag.Parse()
	who := authn.Anonymous
	if *user != "" {
		who = &authn.Basic{Username: *user, Password: *password}
	}
	if err := run(*busybox, *listen, *page, *ballast, who); err != nil {
		fmt.Fprintln(os.Stderr, "registry:", err)
		os.Exit(1)
	}
}

func run(busybox, listen, page string, ballast int, who authn.Authenticator) error {
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
		quiet := log.New(io.Discard, "", 0)
		server := http.Server{Handler: guarded(who, spoiled(registry.New(registry.Logger(quiet)))), ErrorLog: quiet}
		served <- server.Serve(l)
	}()
	img, err := image(program, page, ballast)
	if err != nil {
		return fmt.Errorf("make the image: %w", err)
	}
	for _, repository := range []string{"forged", "truncated", "web"} {
		ref, err := name.ParseReference(l.Addr().String()+"/"+repository+":latest", name.Insecure)
		if err != nil {
			return err
		}
		if err := remote.Write(ref, img, remote.WithAuth(who)); err != nil {
			return fmt.Errorf("push image %s: %w", repository, err)
		}
		if repository == "web" {
			fmt.Println(ref.Name()) // last: who reads it finds all of them
		}
	}
	return <-served
}

// guarded asks for a user and password, if there is one to let in.
func guarded(who authn.Authenticator, next http.Handler) http.Handler {
	basic, ok := who.(*authn.Basic)
	if !ok {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != basic.Username || password != basic.Password {
			w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// spoiled gives out the layers of the repositories forged and truncated as those names say.
func spoiled(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		forged, truncated := strings.HasPrefix(r.URL.Path, "/v2/forged/blobs/"), strings.HasPrefix(r.URL.Path, "/v2/truncated/blobs/")
		if r.Method != http.MethodGet || !forged && !truncated {
			next.ServeHTTP(w, r)
			return
		}
		r.Header.Del("Range") // who goes on where it broke off begins anew, or would have all of it in the end
		whole := httptest.NewRecorder()
		next.ServeHTTP(whole, r)
		body := whole.Body.Bytes()
		const layer = 64 << 10 // what is smaller is the configuration, or a layer nobody will miss
		spoil := whole.Code/100 == 2 && len(body) > layer
		if spoil && forged {
			body[len(body)/2] ^= 1
		}
		for key, values := range whole.Header() {
			w.Header()[key] = values
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		w.WriteHeader(whole.Code)
		if spoil && truncated {
			_, _ = w.Write(body[:len(body)/2])
			panic(http.ErrAbortHandler)
		}
		_, _ = w.Write(body)
	})
}

// file is one entry of a layer; without data and with a link it is a link.
type file struct {
	name, link string
	mode       int64
	data       []byte
}

func image(busybox []byte, page string, ballast int) (v1.Image, error) {
	base := []file{
		{name: "bin/busybox", mode: 0o755, data: busybox},
		{name: "up", link: "../../../../../../../../../../../../../.."}, // out of the image, for who follows it from outside
	}
	for _, applet := range []string{"sh", "httpd", "cat", "ls", "echo", "sleep", "wget", "ip", "hostname", "id"} {
		base = append(base, file{name: "bin/" + applet, link: "busybox"})
	}
	for _, dir := range []string{"etc", "proc", "sys", "dev", "tmp", "www"} {
		base = append(base, file{name: dir + "/", mode: 0o755})
	}
	layers := [][]file{base}
	for i := range ballast / 4 {
		dir := fmt.Sprintf("usr/share/ballast-%d/", i)
		files := []file{{name: dir, mode: 0o755}}
		for n := range 256 { // of the size that files of distributions have
			data := make([]byte, 16<<10)
			if _, err := rand.Read(data); err != nil { // which does not compress
				return nil, err
			}
			files = append(files, file{name: fmt.Sprintf("%s%d", dir, n), mode: 0o644, data: data})
		}
		layers = append(layers, files)
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
