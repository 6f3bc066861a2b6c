// Command csi-driver is a CSI driver whose volumes are folders that all nodes of a test cluster share. Like a disk of a cloud, a volume can
// be used on a node only after the controller service has attached it there, and it can be attached to one node at a time. Only the sidecars
// of the Kubernetes project, which the same module builds, call its controller service.
//
// A volume is the folder VOLUMES/ID:
//
//	home        what pods mount; new as mkfs leaves it: owned by root, with a folder lost+found
//	attached    the node that the volume is attached to
//	staged-NODE present while the volume is mounted on a node
//	size        bytes
//
// It is strict where Kubernetes must keep an order: a volume that a node still mounts is not detached, and one that is still attached is
// not deleted. Each refusal of this kind is a line of the file VOLUMES/../violations. It must never run on a real cluster: everything is one
// machine's folder.
package main

import (
	"context"
	"flag"
	"log"
	"net"
	"os"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

func main() {
	var d driver
	endpoint := flag.String("endpoint", "", "socket of the CSI services")
	registry := flag.String("registration", "", "socket in the kubelet's folder plugins_registry")
	flag.StringVar(&d.name, "name", "", "name of the driver")
	flag.StringVar(&d.node, "node", "", "name of the node")
	flag.StringVar(&d.data, "data", "", "folder that all nodes share")
	flag.Parse()
	if err := os.MkdirAll(filepath.Join(d.data, "volumes"), 0o700); err != nil {
		log.Fatal(err)
	}
	services := grpc.NewServer(grpc.UnaryInterceptor(logged))
	csi.RegisterIdentityServer(services, &d)
	csi.RegisterControllerServer(services, &d)
	csi.RegisterNodeServer(services, &d)
	kubelet := grpc.NewServer()
	registration.RegisterRegistrationServer(kubelet, &registrar{driver: d.name, endpoint: *endpoint})
	ended := make(chan error)
	go func() { ended <- serve(services, *endpoint) }()
	go func() { ended <- serve(kubelet, *registry) }()
	log.Fatal(<-ended)
}

func serve(server *grpc.Server, path string) error {
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	return server.Serve(listener)
}

// logged writes a line for each call that changes or refuses something.
func logged(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	answer, err := handler(ctx, request)
	switch info.FullMethod {
	case csi.Identity_Probe_FullMethodName, csi.Node_NodeGetCapabilities_FullMethodName:
	default:
		log.Printf("%s %v: %v %v", info.FullMethod, request, answer, err)
	}
	return answer, err
}

// registrar answers the kubelet's plugin watcher, as node-driver-registrar does.
type registrar struct {
	registration.UnimplementedRegistrationServer
	driver, endpoint string
}

func (r *registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type:              registration.CSIPlugin,
		Name:              r.driver,
		Endpoint:          r.endpoint,
		SupportedVersions: []string{"1.0.0"},
	}, nil
}

func (r *registrar) NotifyRegistrationStatus(
	_ context.Context, status *registration.RegistrationStatus,
) (*registration.RegistrationStatusResponse, error) {
	if !status.PluginRegistered {
		log.Printf("the kubelet refuses the driver: %s", status.Error)
	}
	return &registration.RegistrationStatusResponse{}, nil
}
