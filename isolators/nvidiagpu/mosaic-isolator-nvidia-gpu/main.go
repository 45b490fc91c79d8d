// Command mosaic-isolator-nvidia-gpu serves the isolator nvidia_gpu, which is a binary of its own: it loads the
// driver's library, and what goes wrong in there ends this process and no other. With the argument "resources" it
// prints what this machine's GPUs are as resources of an agent, and ends.
package main

import (
	"fmt"
	"os"

	"github.com/mosaic-cluster/mosaic/isolators/nvidiagpu"
	"github.com/mosaic-cluster/mosaic/sdk/module"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "resources" {
		text, err := nvidiagpu.Resources(nvidiagpu.Open)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(text)
		return
	}
	module.Serve(nvidiagpu.New())
}
