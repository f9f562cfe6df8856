#!/bin/bash
# scripts/backup-database.sh

set -euo pipefail

# Configuration
BACKUP_DIR="${BACKUP_DIR:-/backups}/database"
TIMESTAMP=$(date +"%Y%m%d_%H%M%S")
BACKUP_ID="backup_${TIMESTAMP}"
LOG_FILE="${LOG_FILE:-/var/log/kyb-platform/backup.log}"

# Environment variables
DB_HOST="${DB_HOST:-localhost}"
DB_PORT="${DB_PORT:-5432}"
DB_NAME="${DB_NAME:-kyb_platform}"
DB_USER="${DB_USER:-kyb_user}"

# Create backup directory
mkdir -p "${BACKUP_DIR}/full/${BACKUP_ID}"

# Log function
log() {
    echo "[$(date '+%Y-%m-%d %H:%M:%S')] $1" | tee -a "$LOG_FILE"
}

# Pre-backup validation
validate_environment() {
    log "Starting backup validation..."

    # Check required environment variables
    if [[ -z "${DB_PASSWORD:-}" ]]; then
        log "ERROR: DB_PASSWORD environment variable not set"
        exit 1
    fi

    # Test database connection
    if ! PGPASSWORD="$DB_PASSWORD" psql -h "$DB_HOST" -p "$DB_PORT" -U "$DB_USER" -d "$DB_NAME" -c "SELECT 1;" >/dev/null 2>&1; then
        log "ERROR: Cannot connect to database"
        exit 1
    fi

    # Check disk space (require at least 2GB free)
    AVAILABLE_SPACE=$(df "$BACKUP_DIR" | awk 'NR==2 {print $4}')
    if [[ $AVAILABLE_SPACE -lt 2097152 ]]; then  # 2GB in KB
        log "ERROR: Insufficient disk space for backup"
        exit 1
    fi

    log "Environment validation completed successfully"
}

# Create full database backup
create_full_backup() {
    log "Creating full database backup: $BACKUP_ID"

    local backup_file="${BACKUP_DIR}/full/${BACKUP_ID}/database.sql.gz"
    local metadata_file="${BACKUP_DIR}/full/${BACKUP_ID}/backup_metadata.json"

    # Create database dump
    PGPASSWORD="$DB_PASSWORD" pg_dump \
        -h "$DB_HOST" \
        -p "$DB_PORT" \
        -U "$DB_USER" \
        -d "$DB_NAME" \
        --verbose \
        --no-password \
        --format=plain \
        --compress=9 \
        --file="$backup_file"

    # Create metadata file
    cat > "$metadata_file" << EOF
{
    "backup_id": "$BACKUP_ID",
    "timestamp": "$(date -u +"%Y-%m-%dT%H:%M:%SZ")",
    "type": "full",
    "database": {
        "host": "$DB_HOST",
        "port": "$DB_PORT",
        "name": "$DB_NAME",
        "user": "$DB_USER"
    },
    "backup_file": "$backup_file",
    "file_size": "$(stat -c%s "$backup_file")",
    "checksum": "$(sha256sum "$backup_file" | cut -d' ' -f1)"
}
EOF

    log "Full backup completed: $backup_file"
}

# Verify backup integrity
verify_backup() {
    log "Verifying backup integrity..."

    local backup_file="${BACKUP_DIR}/full/${BACKUP_ID}/database.sql.gz"
    local metadata_file="${BACKUP_DIR}/full/${BACKUP_ID}/backup_metadata.json"

    # Check if files exist
    if [[ ! -f "$backup_file" ]] || [[ ! -f "$metadata_file" ]]; then
        log "ERROR: Backup files not found"
        return 1
    fi

    # Verify file size
    local expected_size=$(jq -r '.file_size' "$metadata_file")
    local actual_size=$(stat -c%s "$backup_file")

    if [[ "$expected_size" != "$actual_size" ]]; then
        log "ERROR: Backup file size mismatch"
        return 1
    fi

    # Verify checksum
    local expected_checksum=$(jq -r '.checksum' "$metadata_file")
    local actual_checksum=$(sha256sum "$backup_file" | cut -d' ' -f1)

    if [[ "$expected_checksum" != "$actual_checksum" ]]; then
        log "ERROR: Backup checksum mismatch"
        return 1
    fi

    # Test backup restoration (dry run)
    if ! gunzip -t "$backup_file"; then
        log "ERROR: Backup file is corrupted"
        return 1
    fi

    log "Backup verification completed successfully"
}

# Main backup process
main() {
    log "Starting database backup process"

    validate_environment
    create_full_backup

    if verify_backup; then
        log "Backup process completed successfully"
        exit 0
    else
        log "Backup verification failed"
        exit 1
    fi
}

# Run main function
main "$@"
