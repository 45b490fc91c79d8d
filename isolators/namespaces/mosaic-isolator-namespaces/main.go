// Command mosaic-isolator-namespaces serves the isolator namespaces as a binary of its own.
package main

import (
	"github.com/mosaic-cluster/mosaic/isolators/namespaces"
	"github.com/mosaic-cluster/mosaic/sdk/module"
)

func main() { module.Serve(namespaces.New()) }
