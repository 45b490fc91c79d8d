// Package examples holds the smallest module of each kind, each in a folder of its own. They are what
// `mosaic module new` writes, under another name.
package examples

import "embed"

// Files are the sources of all examples, as KIND-hello/main.go, KIND-hello/main_test.go and KIND-hello-python/main.py,
// with hyphens in the kinds.
//
//go:embed */main.go */main_test.go */main.py
var Files embed.FS
