// Command mosaic-isolator-disk serves the isolator disk as a binary of its own.
package main

import (
	"github.com/mosaic-cluster/mosaic/isolators/disk"
	"github.com/mosaic-cluster/mosaic/sdk/module"
)

func main() { module.Serve(disk.New()) }
