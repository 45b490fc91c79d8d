// Command mosaic-isolator-docker-volume serves the isolator docker_volume as a binary of its own.
package main

import (
	"github.com/mosaic-cluster/mosaic/isolators/dockervolume"
	"github.com/mosaic-cluster/mosaic/sdk/module"
)

func main() { module.Serve(dockervolume.New()) }
