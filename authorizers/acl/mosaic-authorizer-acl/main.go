// Command mosaic-authorizer-acl serves the authorizer acl as a binary of its own.
package main

import (
	"github.com/mosaic-cluster/mosaic/authorizers/acl"
	"github.com/mosaic-cluster/mosaic/sdk/module"
)

func main() { module.Serve(acl.New()) }
