#!/bin/sh
# Makes a CA of your own and certificates for TLS between the services, with openssl:
#
#   deploy/certificates.sh DIR [NAME ...]
#
#   DIR/ca.pem, ca.key    the CA; made once and kept. ca.key is needed only here: store it elsewhere
#   DIR/vision            of the vision service, named vision
#   DIR/decoder           of the decoder service, named decoder
#   DIR/gateway           what the gateway presents to both, named gateway
#   DIR/door              of the gateway's own ports: the NAMEs, such as models.example.com
#
# Each of these folders has cert.pem, key.pem and a copy of ca.pem.
# Each is also valid for localhost and 127.0.0.1. A second run makes new certificates, and running services use them for
# new connections. DAYS sets how long they are valid (default 90).
set -eu
directory=${1:?usage: certificates.sh DIR [NAME ...]}
shift
days=${DAYS:-90}
umask 077
mkdir -p "$directory"
cd "$directory"
curve="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"

if [ ! -e ca.key ]; then
    openssl req -x509 $curve -days 3650 -subj "/CN=Triptych CA" -addext "keyUsage=critical,keyCertSign,cRLSign" \
        -keyout ca.key -out ca.pem 2>/dev/null
    chmod 644 ca.pem
fi

# make FOLDER NAME...: the files are renamed into place, so that no service reads a half of one.
make() {
    folder=$1
    shift
    names="DNS:localhost,IP:127.0.0.1"
    for name; do
        case $name in
            *:* | *[0-9].[0-9]*.[0-9]*.[0-9]*) names="$names,IP:$name" ;;
            *) names="DNS:$name,$names" ;;
        esac
    done
    openssl req $curve -subj "/CN=${1:-localhost}" -keyout "new.key" -out "new.csr" 2>/dev/null
    printf 'subjectAltName=%s\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth,clientAuth\n' "$names" >new.ext
    openssl x509 -req -in new.csr -CA ca.pem -CAkey ca.key -days "$days" -extfile new.ext -out new.pem 2>/dev/null
    mkdir -p "$folder"
    cp ca.pem new.ca
    chmod 644 new.ca new.pem
    mv new.ca "$folder/ca.pem"
    mv new.key "$folder/key.pem"
    mv new.pem "$folder/cert.pem"
    rm new.csr new.ext
}

make vision vision
make decoder decoder
make gateway gateway
make door "$@"
