package modulehost

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/protobuf/proto"

	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

// schemaCache keeps what modules said of themselves, by the digest of their file, so that a composition can be checked
// without running anything. It is a help only: what cannot be written or read is as if it were not there.
type schemaCache struct{ folder string }

func (c schemaCache) path(kind, name, digest string) string {
	return filepath.Join(c.folder, fmt.Sprintf("%s-%s-%s.pb", kind, name, strings.TrimPrefix(digest, "sha256:")))
}

func (c schemaCache) put(kind, name, digest string, d *modulev1.DescribeResponse) {
	if c.folder == "" {
		return
	}
	path := c.path(kind, name, digest)
	if _, err := os.Stat(path); err == nil {
		return // every answer of one binary is the same
	}
	data, err := proto.Marshal(d)
	if err != nil || os.MkdirAll(c.folder, 0o755) != nil {
		return
	}
	temp, err := os.CreateTemp(c.folder, ".new-*")
	if err != nil {
		return
	}
	_, err = temp.Write(data)
	if temp.Close() != nil || err != nil || os.Rename(temp.Name(), path) != nil {
		os.Remove(temp.Name())
	}
}

func (c schemaCache) get(kind, name, digest string) *modulev1.DescribeResponse {
	if c.folder == "" {
		return nil
	}
	data, err := os.ReadFile(c.path(kind, name, digest))
	if err != nil {
		return nil
	}
	d := new(modulev1.DescribeResponse)
	if proto.Unmarshal(data, d) != nil || checkDescription(d) != nil {
		return nil
	}
	return d
}
