package modulehost

import (
	"fmt"
	"strings"

	"google.golang.org/grpc"

	modulev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/module/v1"
)

// The kinds of modules, as they are written in a composition.
const (
	KindIsolator          = "isolator"
	KindAuthorizer        = "authorizer"
	KindAuthenticator     = "authenticator"
	KindResourceEstimator = "resource_estimator"
	KindQoSController     = "qos_controller"
	KindResourceProvider  = "resource_provider"
	KindSecretResolver    = "secret_resolver"
	KindContainerLogger   = "container_logger"
	KindHook              = "hook"
)

// A contract is one version of a kind's service, with what lifts it to the calls that the host itself speaks.
type contract struct {
	service string                             // full name of the gRPC service
	lift    func(grpc.ClientConnInterface) any // the kind's calls: isolatorCalls and so on
}

// contracts gives the versions of every kind that the host knows, the newest first. An older one has one adapter file.
func contracts() map[string][]contract {
	return map[string][]contract{
		KindIsolator:          {{"mosaic.isolator.v1.Isolator", liftIsolatorV1}},
		KindAuthorizer:        {{"mosaic.authorizer.v1.Authorizer", liftAuthorizerV1}},
		KindAuthenticator:     {{"mosaic.authenticator.v1.Authenticator", liftAuthenticatorV1}},
		KindResourceEstimator: {{"mosaic.resourceestimator.v1.ResourceEstimator", liftEstimatorV1}},
		KindQoSController:     {{"mosaic.qoscontroller.v1.QoSController", liftQoSControllerV1}},
		KindResourceProvider:  {{"mosaic.resourceprovider.v1.ResourceProvider", liftResourceProviderV1}},
		KindSecretResolver:    {{"mosaic.secretresolver.v1.SecretResolver", liftSecretResolverV1}},
		KindContainerLogger:   {{"mosaic.containerlogger.v1.ContainerLogger", liftContainerLoggerV1}},
		KindHook:              {{"mosaic.hook.v1.Hook", liftHookV1}},
	}
}

// choose takes the newest contract that both sides have. The error names the module, its services, ours, and which
// side is to be upgraded.
func choose(known []contract, d *modulev1.DescribeResponse) (contract, error) {
	for _, c := range known {
		for _, service := range d.GetServices() {
			if service == c.service {
				return c, nil
			}
		}
	}
	ours := make([]string, len(known))
	for i, c := range known {
		ours[i] = c.service
	}
	theirs := "no service"
	if len(d.GetServices()) > 0 {
		theirs = strings.Join(d.GetServices(), ", ")
	}
	return contract{}, fmt.Errorf("the module (version %s) serves %s; this host speaks %s: %s",
		d.GetVersion(), theirs, strings.Join(ours, ", "), upgrade(ours, d.GetServices()))
}

// upgrade says which side is behind, as far as the names of the services tell.
func upgrade(ours, theirs []string) string {
	newest := func(services []string) (base string, version int) {
		for _, s := range services {
			b, v := serviceVersion(s)
			if v > version {
				base, version = b, v
			}
		}
		return base, version
	}
	ourBase, our := newest(ours)
	theirBase, their := newest(theirs)
	switch {
	case ourBase != theirBase || their == 0:
		return "it is no module of this kind; check the command"
	case their > our:
		return "upgrade mosaic, or use an older version of the module"
	default:
		return "upgrade the module"
	}
}

// serviceVersion splits mosaic.isolator.v2.Isolator into mosaic.isolator and 2.
func serviceVersion(service string) (base string, version int) {
	parts := strings.Split(service, ".")
	for i, part := range parts {
		var v int
		if n, _ := fmt.Sscanf(part, "v%d", &v); n == 1 && fmt.Sprintf("v%d", v) == part {
			return strings.Join(parts[:i], "."), v
		}
	}
	return service, 0
}
