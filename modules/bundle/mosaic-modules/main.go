// Command mosaic-modules holds every module that comes with Mosaic. Its argument says which one a process serves.
package main

import (
	"github.com/mosaic-cluster/mosaic/modules/bundle"
	"github.com/mosaic-cluster/mosaic/sdk/module"
)

func main() { module.Main(bundle.Modules()) }
