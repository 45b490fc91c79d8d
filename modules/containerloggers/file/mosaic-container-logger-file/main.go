// Command mosaic-container-logger-file serves the container logger file as a binary of its own.
package main

import (
	"github.com/mosaic-cluster/mosaic/modules/containerloggers/file"
	"github.com/mosaic-cluster/mosaic/sdk/module"
)

func main() { module.Serve(file.New()) }
