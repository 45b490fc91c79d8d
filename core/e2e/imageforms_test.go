package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/compression"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	change "github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
)

// verdict is what the checked image says of itself when all of it is as its layers say.
const verdict = "all is well\n"

// checks is the program of the checked image.
const checks = `bad=0
wrong() { echo "wrong: $*"; bad=1; }
same() { [ "$2" = "$3" ] || wrong "$1: got $2, want $3"; }
[ ! -e /etc/gone ] || wrong "a file that a layer takes away is there"
[ ! -e /old/x ] || wrong "what lies below a folder that a layer replaces is seen"
same "file of a folder that was replaced" "$(cat /old/y)" new
same "file that a layer replaces" "$(cat /etc/version)" two
same "names of a hard link" "$(stat -c %h /hard/one)" 2
same "hard link" "$(stat -c %i /hard/one)" "$(stat -c %i /hard/two)"
same "link" "$(cat /link)" two
same "owner" "$(stat -c %u:%g:%a /owned)" 1000:1001:640
same "owner of many digits" "$(stat -c %u:%g /rootless)" 1000680000:1000680001
same "setuid" "$(stat -c %u:%a /suid/inside)" 0:4755
same "sticky" "$(stat -c %a /var/tmp)" 1777
[ -e /small ] || same "files of a large layer" "$(ls /many | wc -l)" 5000
same "long name" "$(ls /long)" "$(printf %0200d 7)"
status() { su -s /bin/sh app -c "$1 /proc/self/status" | grep "^$2:" | tr '\t' ' '; }
same "user of a setuid program" "$(status /suid/inside Uid)" "Uid: 1000 0 0 0"
same "capabilities of a file that has some" "$(status /caps/inside CapEff)" "CapEff: 0000000000000400"
same "capabilities of one that has none" "$(status /bin/inside CapEff)" "CapEff: 0000000000000000"
same "variable" "$GREETING" "hello from an image"
[ $bad = 0 ] && echo all is well
exit $bad
`

// capability is what setcap cap_net_bind_service+ep writes to a file. Source: linux/capability.h, vfs_cap_data.
var capability = []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

// entry is one entry of a layer.
type entry struct {
	name, link string
	hard       bool
	mode       int64
	uid, gid   int
	data       []byte
	xattrs     map[string]string
}

func layerTar(t *testing.T, entries []entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Linkname: e.link, Mode: e.mode, Uid: e.uid, Gid: e.gid, Size: int64(len(e.data)), Typeflag: tar.TypeReg, Format: tar.FormatPAX}
		switch {
		case e.hard:
			h.Typeflag = tar.TypeLink
		case e.link != "":
			h.Typeflag = tar.TypeSymlink
		case strings.HasSuffix(e.name, "/"):
			h.Typeflag = tar.TypeDir
		}
		for key, value := range e.xattrs {
			h.PAXRecords = map[string]string{"SCHILY.xattr." + key: value}
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// checkedImage is an image whose program looks whether everything that layers can say holds in the container.
type checkedImage struct {
	inside       []byte // a program that says who runs it
	below, above []byte // layers
	large        []byte // a layer of many files
}

func newCheckedImage(t *testing.T) *checkedImage {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs a busybox to make an image of: " + err.Error())
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	built := filepath.Join(t.TempDir(), "inside")
	build := exec.CommandContext(t.Context(), "go", "build", "-ldflags", "-s -w", "-o", built, "./inside")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the program inside: %v\n%s", err, out)
	}
	c := &checkedImage{}
	if c.inside, err = os.ReadFile(built); err != nil {
		t.Fatal(err)
	}
	below := []entry{{name: "bin/", mode: 0o755}, {name: "bin/busybox", mode: 0o755, data: program}, {name: "bin/inside", mode: 0o755, data: c.inside}}
	for _, applet := range []string{"sh", "cat", "ls", "stat", "su", "wc", "grep", "tr", "sleep", "echo", "printf"} {
		below = append(below, entry{name: "bin/" + applet, link: "busybox"})
	}
	for _, dir := range []string{"etc/", "old/", "proc/", "sys/", "dev/", "var/", "root/"} {
		below = append(below, entry{name: dir, mode: 0o755})
	}
	below = append(below, entry{name: "check", mode: 0o755, data: []byte(checks)},
		entry{name: "etc/passwd", mode: 0o644, data: []byte("root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/:/bin/sh\n")},
		entry{name: "etc/group", mode: 0o644, data: []byte("root:x:0:\napp:x:1000:\n")},
		entry{name: "etc/version", mode: 0o644, data: []byte("one")}, entry{name: "etc/gone", mode: 0o644, data: []byte("x")},
		entry{name: "old/x", mode: 0o644, data: []byte("x")}, entry{name: "var/tmp/", mode: 0o1777})
	c.below = layerTar(t, below)
	c.above = layerTar(t, []entry{
		{name: "etc/version", mode: 0o644, data: []byte("two")}, {name: "etc/.wh.gone"},
		{name: "old/", mode: 0o755}, {name: "old/.wh..wh..opq"}, {name: "old/y", mode: 0o644, data: []byte("new")},
		{name: "hard/", mode: 0o755}, {name: "hard/one", mode: 0o644, data: []byte("1")}, {name: "hard/two", link: "hard/one", hard: true},
		{name: "link", link: "/etc/version"}, {name: "owned", mode: 0o640, uid: 1000, gid: 1001},
		{name: "rootless", mode: 0o644, uid: 1000680000, gid: 1000680001},
		{name: "suid/", mode: 0o755}, {name: "suid/inside", mode: 0o4755, data: c.inside},
		{name: "caps/", mode: 0o755}, {name: "caps/inside", mode: 0o755, data: c.inside, xattrs: map[string]string{"security.capability": string(capability)}},
		{name: "long/", mode: 0o755}, {name: "long/" + fmt.Sprintf("%0200d", 7), mode: 0o644},
	})
	many := []entry{{name: "many/", mode: 0o755}}
	for n := range 5000 {
		many = append(many, entry{name: fmt.Sprintf("many/%04d", n), mode: 0o644, data: []byte("file")})
	}
	c.large = layerTar(t, many)
	return c
}

// alter does to files what the upper layers do: tools that make layers of what changed find it.
func (c *checkedImage) alter(t *testing.T, root string) {
	t.Helper()
	at := func(path string) string { return filepath.Join(root, path) }
	var steps []func() error
	do := func(f func() error) { steps = append(steps, f) }
	write := func(path string, mode os.FileMode, data []byte) {
		do(func() error { return os.WriteFile(at(path), data, mode) })
		do(func() error { return os.Chmod(at(path), mode) })
	}
	write("etc/version", 0o644, []byte("two"))
	do(func() error { return os.Remove(at("etc/gone")) })
	do(func() error { return os.RemoveAll(at("old")) })
	for _, dir := range []string{"old", "hard", "suid", "caps", "many", "long"} {
		do(func() error { return os.Mkdir(at(dir), 0o755) })
	}
	write("old/y", 0o644, []byte("new"))
	write("hard/one", 0o644, []byte("1"))
	do(func() error { return os.Link(at("hard/one"), at("hard/two")) })
	do(func() error { return os.Symlink("/etc/version", at("link")) })
	write("owned", 0o640, nil)
	do(func() error { return os.Chown(at("owned"), 1000, 1001) })
	write("rootless", 0o644, nil)
	do(func() error { return os.Chown(at("rootless"), 1000680000, 1000680001) })
	write("suid/inside", 0o755|os.ModeSetuid, c.inside)
	write("caps/inside", 0o755, c.inside)
	do(func() error { return unix.Setxattr(at("caps/inside"), "security.capability", capability, 0) })
	write("long/"+fmt.Sprintf("%0200d", 7), 0o644, nil)
	for n := range 5000 {
		write(fmt.Sprintf("many/%04d", n), 0o644, []byte("file"))
	}
	for _, step := range steps {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
}

// form is how an image is written down.
type form struct {
	manifest, config, layer types.MediaType
	compression             compression.Compression
}

var (
	dockerForm = form{types.DockerManifestSchema2, types.DockerConfigJSON, types.DockerLayer, compression.GZip}
	ociForm    = form{types.OCIManifestSchema1, types.OCIConfigJSON, types.OCILayer, compression.GZip}
	zstdForm   = form{types.OCIManifestSchema1, types.OCIConfigJSON, types.OCILayerZStd, compression.ZStd}
	plainForm  = form{types.OCIManifestSchema1, types.OCIConfigJSON, types.OCIUncompressedLayer, compression.None}
)

// only writes an image of the lower layer alone.
func (c *checkedImage) only(t *testing.T, f form) v1.Image { return assemble(t, f, c.below) }

// image writes the image down. What sets it apart keeps layers from being shared with other forms, which would not be
// unpacked then.
func (c *checkedImage) image(t *testing.T, f form, apart string) v1.Image {
	t.Helper()
	return assemble(t, f, layerTar(t, []entry{{name: "apart", mode: 0o644, data: []byte(apart)}}), c.below, c.above, c.large)
}

// small is image without the layer of many files.
func (c *checkedImage) small(t *testing.T, f form, apart string) v1.Image {
	t.Helper()
	return assemble(t, f, layerTar(t, []entry{{name: "small", mode: 0o644, data: []byte(apart)}}), c.below, c.above)
}

func assemble(t *testing.T, f form, layers ...[]byte) v1.Image {
	t.Helper()
	img := change.ConfigMediaType(change.MediaType(empty.Image, f.manifest), f.config)
	for _, data := range layers {
		var l v1.Layer
		var err error
		if f.compression == compression.None {
			l = static.NewLayer(data, f.layer)
		} else {
			l, err = tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil },
				tarball.WithCompression(f.compression), tarball.WithMediaType(f.layer), tarball.WithCompressedCaching)
		}
		if err == nil {
			img, err = change.Append(img, change.Addendum{Layer: l, MediaType: f.layer})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	config.Config.Entrypoint = []string{"/bin/sh"}
	config.Config.Cmd = []string{"/check"}
	config.Config.Env = []string{"PATH=/bin", "GREETING=hello from an image"}
	if img, err = change.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	return img
}

// several is a list with an image for this machine among those for others.
func several(t *testing.T, mine v1.Image, list types.MediaType) v1.ImageIndex {
	t.Helper()
	as := func(img v1.Image, os, arch, variant string) change.IndexAddendum {
		return change.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: os, Architecture: arch, Variant: variant}}}
	}
	other := assemble(t, ociForm, layerTar(t, []entry{{name: "of", mode: 0o644, data: []byte("another machine")}}))
	return change.IndexMediaType(change.AppendManifests(empty.Index,
		as(other, "linux", "arm", "v7"), as(other, "linux", "s390x", ""), as(mine, "linux", "amd64", ""), as(other, "windows", "amd64", "")), list)
}

// runsChecked runs an image as frameworks ask for it, with containers of both types, and through the command line.
func runsChecked(t *testing.T, c *cluster.Cluster, what, image string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	prune(t, c) // layers of the form before it would be taken
	s := subscribeScript(ctx, t, c.Master, "images")
	offer := s.offer(`"cpus"`)
	var tasks []any
	ids := map[string]object{
		what + "-mesos":  {"type": "MESOS", "mesos": object{"image": object{"type": "DOCKER", "docker": object{"name": image}}}},
		what + "-docker": {"type": "DOCKER", "docker": object{"image": image, "network": "HOST"}},
	}
	for id, container := range ids {
		tasks = append(tasks, object{
			"name": id, "task_id": object{"value": id}, "agent_id": dig(offer, "agent_id"), "command": object{"shell": false},
			"resources": []any{scalar("cpus", 0.1), scalar("mem", 128)}, "container": container,
		})
	}
	s.accept(offer, object{"type": "LAUNCH", "launch": object{"task_infos": tasks}})
	for left := len(ids); left > 0; {
		status := dig(s.await("UPDATE", func(object) bool { return true }), "update", "status")
		id, _ := dig(status, "task_id", "value").(string)
		switch state := dig(status, "state"); state {
		case "TASK_STARTING", "TASK_RUNNING":
			continue
		case "TASK_FINISHED":
		default:
			t.Errorf("%s: %s: %v %v; it says %q", id, image, state, dig(status, "message"), stdoutOf(t, c, id))
		}
		left--
	}
	s.call(object{"type": "TEARDOWN"})
	if r, err := c.Mosaic(ctx, "run", "--image", image, "--mem", "128"); err != nil || r.Code != 0 || r.Stdout != verdict {
		t.Errorf("%s: mosaic run --image %s: got exit code %d, %v, %q, want %q\n%s", what, image, r.Code, err, r.Stdout, verdict, r.Stderr)
	}
}

// prune removes the agent's images. Of a task that has just ended the container may still be there, and keeps its own.
func prune(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	eventually(t, "no image is in use", time.Minute, func() bool {
		mosaic(t, c, 0, "image", "prune")
		return strings.TrimSpace(mosaic(t, c, 0, "image", "ls", "-o", "json").Stdout) == "[]"
	})
}

// stdoutOf is what a task of any framework wrote.
func stdoutOf(t *testing.T, c *cluster.Cluster, task string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(c.Dir, "agent", "slaves", "*", "frameworks", "*", "executors", task, "runs", "latest", "stdout"))
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Error(err)
		}
		all.Write(text)
	}
	return all.String()
}

func TestImagesMadeByOtherToolsRun(t *testing.T) {
	needRoot(t)
	needTools(t, "skopeo", "umoci")
	checked := newCheckedImage(t)
	registry := startDistribution(t)
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	c := start(t, cluster.Options{Composition: registry.composition(t)})

	// Written by go-containerregistry.
	schema2, byDigest := registry.push(t, "team/schema2:1", checked.image(t, dockerForm, "schema2"))
	runsChecked(t, c, "schema2", schema2)
	runsChecked(t, c, "schema2-by-digest", byDigest)
	oci, byDigest := registry.push(t, "team/deep/er/oci:v1.0", checked.small(t, ociForm, "oci"))
	runsChecked(t, c, "oci", oci)
	runsChecked(t, c, "oci-by-both", oci+byDigest[strings.Index(byDigest, "@"):])
	zstd, _ := registry.push(t, "team/zstd:1", checked.image(t, zstdForm, "zstd"))
	runsChecked(t, c, "zstd", zstd)
	plain, _ := registry.push(t, "team/plain:1", checked.small(t, plainForm, "plain"))
	runsChecked(t, c, "plain", plain)
	list, byDigest := registry.push(t, "team/list:1", several(t, checked.small(t, dockerForm, "list"), types.DockerManifestList))
	runsChecked(t, c, "manifest-list", list)
	runsChecked(t, c, "manifest-list-by-digest", byDigest)
	index, _ := registry.push(t, "team/index:1", several(t, checked.small(t, ociForm, "index"), types.OCIImageIndex))
	runsChecked(t, c, "index", index)
	saved := in("saved.tar")
	tag, err := name.NewTag("example.com/saved:1")
	if err == nil {
		err = tarball.WriteToFile(saved, tag, checked.small(t, dockerForm, "saved"))
	}
	if err != nil {
		t.Fatal(err)
	}
	runsChecked(t, c, "saved", saved)
	path, err := layout.Write(in("written"), empty.Index)
	if err == nil {
		err = path.AppendImage(checked.small(t, zstdForm, "written"))
	}
	if err != nil {
		t.Fatal(err)
	}
	runsChecked(t, c, "written", in("written"))

	// By skopeo: from one registry and form to another.
	registry.skopeoCopy(t, "docker://"+oci, "docker://"+registry.host+"/copies/schema2:1", "--format", "v2s2")
	runsChecked(t, c, "skopeo-schema2", registry.host+"/copies/schema2:1")
	registry.skopeoCopy(t, "docker://"+index, "docker://"+registry.host+"/copies/index:1", "--all")
	runsChecked(t, c, "skopeo-index", registry.host+"/copies/index:1")
	registry.skopeoCopy(t, "docker://"+schema2, "docker-archive:"+in("docker.tar")+":example.com/copy:1")
	runsChecked(t, c, "docker-archive", in("docker.tar"))
	registry.skopeoCopy(t, "docker://"+oci, "oci-archive:"+in("oci.tar")+":1")
	runsChecked(t, c, "oci-archive", in("oci.tar"))
	registry.skopeoCopy(t, "docker://"+oci, "oci:"+in("layout")+":1", "--dest-compress-format", "zstd")
	registry.skopeoCopy(t, "docker://"+plain, "oci:"+in("layout")+":2")
	runsChecked(t, c, "layout", in("layout")+":1")

	// By umoci: it makes a layer of what was changed in a folder.
	registry.skopeoCopy(t, "docker://"+first(registry.push(t, "team/below:1", checked.only(t, ociForm))), "oci:"+in("umoci")+":1")
	tool(t, "umoci", "unpack", "--image", in("umoci")+":1", in("bundle"))
	checked.alter(t, filepath.Join(in("bundle"), "rootfs"))
	tool(t, "umoci", "repack", "--refresh-bundle", "--image", in("umoci")+":1", in("bundle"))
	tool(t, "umoci", "config", "--image", in("umoci")+":1", "--author", "somebody")
	tool(t, "umoci", "gc", "--layout", in("umoci"))
	runsChecked(t, c, "umoci", in("umoci"))
	registry.skopeoCopy(t, "oci:"+in("umoci")+":1", "docker://"+registry.host+"/made/umoci:1")
	runsChecked(t, c, "umoci-pushed", registry.host+"/made/umoci:1")
}

// first is the first of two.
func first[T any](a, _ T) T { return a }

func TestImagesThatBuildahMadeRun(t *testing.T) {
	needRoot(t)
	needTools(t, "buildah")
	checked := newCheckedImage(t)
	registry := startDistribution(t)
	dir := t.TempDir()
	c := start(t, cluster.Options{Composition: registry.composition(t)})
	buildah := func(args ...string) string {
		t.Helper()
		return strings.TrimSpace(tool(t, "buildah", append([]string{
			"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "vfs"}, args...)...))
	}
	t.Cleanup(func() {
		if entries, err := os.ReadDir(filepath.Join(dir, "root")); err == nil && len(entries) > 0 {
			_ = exec.Command("buildah", "--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "vfs", "rm", "--all").Run()
		}
	})
	below, _ := registry.push(t, "team/below:1", checked.only(t, ociForm))
	container := buildah("from", "--cert-dir", registry.certs(), "--creds", registry.creds(), below)
	checked.alter(t, buildah("mount", container))
	buildah("umount", container)
	for _, format := range []string{"oci", "docker"} {
		image := registry.host + "/made/buildah:" + format
		buildah("commit", "--format", format, "--cert-dir", registry.certs(), "--creds", registry.creds(), container, "docker://"+image)
		runsChecked(t, c, "buildah-"+format, image)
	}
	buildah("rm", container)
}
