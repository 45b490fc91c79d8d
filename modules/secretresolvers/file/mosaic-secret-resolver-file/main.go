// Command mosaic-secret-resolver-file serves the secret resolver file as a binary of its own.
package main

import (
	"github.com/mosaic-cluster/mosaic/modules/secretresolvers/file"
	"github.com/mosaic-cluster/mosaic/sdk/module"
)

func main() { module.Serve(file.New()) }
